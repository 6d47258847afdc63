//! Samples by subject and measure, and the table of their medians with the bars.

use std::time::Duration;

/// What a figure may be at most.
pub(crate) enum Bar {
    None,
    /// This much.
    Most(f64),
    /// This much, and so many times the floor's.
    MostOfFloor(f64, f64),
}

struct Row {
    subject: String,
    measure: &'static str,
    at_once: usize,
    values: Vec<f64>,
}

/// All that was measured, in the order in which it first came.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Table {
    pub(crate) fn add(&mut self, subject: &str, measure: &'static str, at_once: usize, value: f64) {
        let found =
            self.0.iter_mut().find(|r| r.subject == subject && r.measure == measure && r.at_once == at_once);
        match found {
            Some(row) => row.values.push(value),
            None => self.0.push(Row { subject: subject.into(), measure, at_once, values: vec![value] }),
        }
    }

    pub(crate) fn median(&self, subject: &str, measure: &str, at_once: usize) -> Option<f64> {
        let row = |r: &&Row| r.subject == subject && r.measure == measure && r.at_once == at_once;
        self.0.iter().find(row).map(|r| median(&r.values))
    }

    /// One line for each measure of each subject; `bar` says which have one.
    pub(crate) fn print(&self, at_once: usize, bar: impl Fn(&str, &str) -> Bar) {
        println!("\n{at_once} at once");
        println!(
            "{:32}{:16}{:>10}{:>10}{:>10}{:>9}  bar",
            "measure", "subject", "median", "fastest", "of floor", "samples"
        );
        let mut rows: Vec<&Row> = self.0.iter().filter(|r| r.at_once == at_once).collect();
        let order: Vec<&str> = rows.iter().map(|r| r.measure).collect();
        rows.sort_by_key(|r| order.iter().position(|m| *m == r.measure));
        for row in rows {
            let middle = median(&row.values);
            let least = row.values.iter().copied().fold(f64::INFINITY, f64::min);
            let floor = self.median("floor", row.measure, at_once).map(|floor| middle / floor);
            let verdict = |met: bool| if met { "met" } else { "MISSED" };
            let bar = match bar(&row.subject, row.measure) {
                Bar::None => String::new(),
                Bar::Most(most) => format!("{most}: {}", verdict(middle <= most)),
                Bar::MostOfFloor(most, times) => {
                    let near = floor.is_some_and(|f| f <= times);
                    format!("{most}: {}; {times} of floor: {}", verdict(middle <= most), verdict(near))
                }
            };
            let floor = floor.map_or("-".to_owned(), |f| format!("{f:.2}"));
            println!(
                "{:32}{:16}{middle:>10.2}{least:>10.2}{floor:>10}{:>9}  {bar}",
                row.measure,
                row.subject,
                row.values.len()
            );
        }
    }
}
