//! What serde does not say of JSON that has the wrong shape: which name was meant, and that an array stands for an object.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Members that are lists, of requests' bodies and of the config file.
const LISTS: [&str; 10] = [
    "drives",
    "network-interfaces",
    "pmem",
    "network_overrides",
    "drive_overrides",
    "passt_overrides",
    "network_interfaces",
    "move_disks",
    "allow_devices",
    "allow_paths",
];

/// The name of an array that is no list; `name` is that of the whole. serde takes an array for a struct's fields in their
/// order, which no one means.
fn stray_array<'a>(name: &'a str, value: &'a Value) -> Option<&'a str> {
    match value {
        Value::Array(_) if !LISTS.contains(&name) => Some(name),
        Value::Array(list) => list.iter().find_map(|v| match v {
            Value::Array(_) => Some(name),
            v => stray_array(name, v),
        }),
        Value::Object(members) => members.iter().find_map(|(name, v)| stray_array(name, v)),
        _ => None,
    }
}

/// How many letters differ, at most: put in, left out, exchanged, or two swapped.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Reads JSON whose objects are objects; `whole` names all of it.
///
/// # Errors
/// What is wrong and where, for the user.
pub fn read<T: DeserializeOwned>(bytes: &[u8], whole: &str) -> Result<T, String> {
    let read = serde_json::from_slice(bytes).map_err(|e| e.to_string());
    if let Err(text) = &read
        && text.starts_with("unknown ")
    {
        return Err(teach(text));
    }
    match serde_json::from_slice(bytes) {
        Ok(value) => match stray_array(whole, &value) {
            Some(name) => Err(format!("{name}: an object is wanted, not an array")),
            None => read,
        },
        Err(_) => read,
    }
}

/// serde's text, and which name was meant, if it complains of one and another is near.
pub fn teach(text: impl ToString) -> String {
    const LONGEST: usize = 64;
    let text = text.to_string();
    let mut names = text.split('`').skip(1).step_by(2);
    let complains = text.starts_with("unknown field `") || text.starts_with("unknown variant `");
    let Some(wrong) = names.next().filter(|w| complains && w.len() <= LONGEST) else { return text };
    let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let near = names
        .filter(|n| n.len() <= LONGEST)
        .map(|n| (distance(&plain(wrong), &plain(n)), n))
        .filter(|(d, n)| *d <= 1 + n.len() / 5)
        .min_by_key(|(d, _)| *d);
    match near {
        Some((_, name)) => format!("{text}; did you mean `{name}`?"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_found() {
        let list = "expected one of `boot-source`, `drives`, `mem_size_mib`, `vcpu_count` at line 3 column 8";
        for (wrong, meant) in [
            ("drivs", "drives"),
            ("drive", "drives"),
            ("boot_source", "boot-source"),
            ("BootSource", "boot-source"),
            ("memsizemib", "mem_size_mib"),
            ("mem_size_mb", "mem_size_mib"),
            ("vcpu_cuont", "vcpu_count"),
        ] {
            let said = teach(format!("unknown field `{wrong}`, {list}"));
            assert!(said.ends_with(&format!("{list}; did you mean `{meant}`?")), "{said}");
        }
        for text in [
            format!("unknown field `kernel`, {list}"),
            format!("unknown field `{}`, {list}", "d".repeat(100_000)),
            "unknown field ``, there are no fields".to_owned(),
            "missing field `drives`".to_owned(),
        ] {
            assert_eq!(teach(&text), text);
        }
        assert!(teach("unknown variant `paused`, expected `Paused` or `Resumed`").ends_with("`Paused`?"));
    }

    #[test]
    fn what_is_wrong_first_is_said() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            drives: Vec<u8>,
        }
        let error = |text: &str| read::<Whole>(text.as_bytes(), "the whole").unwrap_err();
        assert!(error(r#"{"drivs": [1]}"#).ends_with("did you mean `drives`?"));
        assert_eq!(error("[[1]]"), "the whole: an object is wanted, not an array");
        assert!(error(r#"{"drives": [1],}"#).starts_with("trailing comma at line 1"));
        assert_eq!(read::<Whole>(br#"{"drives": [1]}"#, "the whole").unwrap().drives, [1]);
    }

    #[test]
    fn arrays_stand_for_lists_only() {
        let stray = |text: &str| {
            let value = serde_json::from_str(text).unwrap();
            stray_array("the whole", &value).map(str::to_owned)
        };
        for (text, found) in [
            ("[]", Some("the whole")),
            (r#"{"a": [1]}"#, Some("a")),
            (r#"{"drives": [[]]}"#, Some("drives")),
            (r#"{"drives": [{"rate_limiter": []}]}"#, Some("rate_limiter")),
            (r#"{"drives": [{}], "mmds-config": {"network_interfaces": ["e"]}}"#, None),
        ] {
            assert_eq!(stray(text).as_deref(), found, "{text}");
        }
    }
}
