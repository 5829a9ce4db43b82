//! Any text as `floatingIPs.allow` of the configuration file.

#![no_main]

use std::path::Path;

use detector::cli::RunArgs;
use detector::config::{Config, File};
use detector_fuzz::check_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().map(|line| format!("    {line}\n"));
    let text = format!("floatingIPs:\n  allow:\n{}", lines.collect::<String>());
    let args = RunArgs { node_name: Some("worker-1".into()), ..RunArgs::default() };
    let path = Path::new("/etc/detector.yaml");
    match File::parse(path, &text).and_then(|file| Config::resolve(&args, &file)) {
        Ok(config) => {
            for entry in &config.allowed {
                assert!(!entry.allowance.namespace.is_empty());
                assert!(!entry.allowance.service_account.is_empty());
                check_line(&entry.allowance.cidr.to_string());
            }
            // What is shown is read again as the same.
            let shown = config.to_yaml().expect("every configuration can be shown");
            let again = File::parse(path, &shown).and_then(|file| Config::resolve(&args, &file));
            assert_eq!(again.expect("what is shown can be read").allowed.len(), config.allowed.len());
        }
        Err(error) => check_line(&error.to_string()),
    }
});
