//! memtest86+ as Debian has it, on one vCPU of the interpreter: it finds its way about the board, and no error.
//!
//! `scripts/setup --tests` brings it; without it the tests say that they are skipped.

use godwit_tests::harness::{PATIENCE, Process, Scratch, cached, program};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn image() -> Result<PathBuf, String> {
    cached(["memtest/bzImage"], "--tests").map(|[image]| image)
}

/// Numbers that follow `label` wherever it is on the screen.
fn numbers(text: &str, label: &str) -> Vec<u64> {
    text.match_indices(label)
        .filter_map(|(at, _)| {
            let rest = text[at + label.len()..].trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse().ok()
        })
        .collect()
}

/// Runs it until the screen says so.
fn runs(name: &str, mib: u32, done: impl Fn(&str) -> bool) {
    let (image, godwit, plugin) = match (image(), program("godwit"), program("libgodwit_backend_interp.so")) {
        (Ok(image), Ok(godwit), Ok(plugin)) => (image, godwit, plugin),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new(name);
    let config = scratch.path("memtest.json");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":{image:?},"boot_args":"console=ttyS0,115200"}},
             "machine-config":{{"vcpu_count":1,"mem_size_mib":{mib}}}}}"#
    );
    std::fs::write(&config, text).expect("written");
    let paths = [&config, &plugin].map(|p| p.to_str().expect("UTF-8").to_owned());
    let mut vm =
        Process::start(&godwit, &["--no-api", "--config-file", &paths[0], "--backend", &paths[1]], "");
    let (mut end, mut seen) = (Instant::now() + PATIENCE, 0);
    loop {
        let text = vm.text();
        let errors = numbers(&text, "Errors:");
        assert!(errors.iter().all(|n| *n == 0), "memtest86+ has found errors\n{text}");
        if done(&text) {
            break;
        }
        // Only silence is a hang.
        if text.len() > seen {
            (seen, end) = (text.len(), Instant::now() + PATIENCE);
        }
        assert!(vm.is_alive(), "godwit ended early: {}\n{text}", vm.err());
        assert!(Instant::now() < end, "memtest86+ is silent: {}\n{text}", vm.err());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn memtest_tests_memory() {
    // Beyond the address tests.
    runs("memtest_tests_memory", 16, |text| (2..10).any(|n| text.contains(&format!("#{n} "))));
}

/// Minutes: see docs/TESTING.md.
#[test]
#[ignore = "takes minutes"]
fn memtest_passes() {
    runs("memtest_passes", 32, |text| numbers(text, "Pass:").iter().any(|n| *n > 0));
}
