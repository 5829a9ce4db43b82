//! Any text as the CNI plugin's configuration.

#![no_main]

use detector::source::cluster::cni;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let switches = cni::read(&text);
    // What stands before it does not matter, as long as it is none of it.
    assert_eq!(cni::read(&format!(" {{\"name\": [7, __X__],\n{text}")), switches);
});
