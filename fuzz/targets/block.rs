//! Any JSON object as an IPAMBlock and as an IPPool.

#![no_main]

use detector::source::cluster::parse;
use detector_core::route::Prefix;
use detector_fuzz::{check_line, check_rejections};
use kube::core::DynamicObject;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(object) = serde_json::from_slice::<DynamicObject>(data) else { return };
    let cidr = object.data["spec"]["cidr"].as_str().and_then(|text| text.split_once('/'));
    let own =
        cidr.and_then(|(address, length)| Prefix::new(address.parse().ok()?, length.parse().ok()?));
    let other = Prefix::new([10, 244, 0, 0].into(), 26);
    for asked in own.into_iter().chain(other) {
        read_block(&object, asked);
    }
    match parse::pool(&object) {
        Ok(parsed) => {
            check_rejections(&parsed.rejections);
            let pool = parsed.value;
            let block = pool.block_of(pool.cidr.address()).expect("its first address is in it");
            assert!(pool.cidr.covers(&block));
        }
        Err(rejection) => check_line(&rejection.to_string()),
    }
});

fn read_block(object: &DynamicObject, asked: Prefix) {
    match parse::block(object, asked) {
        Ok(parsed) => {
            check_rejections(&parsed.rejections);
            let Some(block) = parsed.value else { return };
            assert_eq!(block.cidr, asked);
            assert!(block.allocations.is_sorted_by(|a, b| a.0 < b.0));
            assert!(block.allocations.iter().all(|(address, _)| asked.contains(*address)));
            for (address, allocation) in &block.allocations {
                assert_eq!(block.allocation(*address), Some(allocation));
            }
        }
        Err(rejection) => check_line(&rejection.to_string()),
    }
}
