//! What is lost is told and counted, and a resync brings it back.

use detector::clock;
use detector::config::RouteSource;
use detector::source::kernel::{Drained, KernelOptions, KernelSource};

use crate::namespace::{in_namespace, ip, ip_batch, told, whole};
use crate::tables::Tables;

/// Routes that are made at once.
const ROUTES: u64 = 4_000;

/// The `number`th route of a flood.
fn route(number: u64) -> String {
    format!(
        "route add 10.{}.{}.{} dev cali1",
        64 + number / 65_536,
        number / 256 % 256,
        number % 256
    )
}

#[test]
fn an_overflow_is_told_and_counted() {
    // The least that either can have.
    let options = KernelOptions { ring_bytes: 4096, queue_bytes: 4096, ..KernelOptions::default() };
    for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
        let options = options.clone();
        in_namespace(move || async move {
            let mut source = KernelSource::open(choice, options).unwrap().source;
            told(&mut source);
            assert_eq!(source.take_loss(), None);
            let before = source.counters();

            ip_batch((0..ROUTES).map(route));
            let heard = told(&mut source).len() as u64;
            let loss = source.take_loss().expect("it could not hold them all");
            assert!(loss.why.ends_with("was full"), "{}", loss.why);
            assert!((1..ROUTES).contains(&heard), "{heard} heard");
            assert_eq!(loss.records, ROUTES - heard, "each is accounted for");
            let counters = source.counters();
            assert_eq!(counters.seen - before.seen, ROUTES);
            assert_eq!(counters.written - before.written, heard);
            assert_eq!(counters.lost - before.lost, loss.records);

            // It is told once, and hears again.
            assert_eq!(source.take_loss(), None);
            ip("route add 10.1.1.1 dev cali1");
            assert_eq!(told(&mut source).len(), 1);
            assert_eq!(source.take_loss(), None);
            let (tables, _) = Tables::dump(whole()).await;
            let made = |route: &&detector_core::route::Route| route.prefix.is_host();
            assert!(tables.routes.iter().filter(made).count() as u64 > ROUTES, "the dump has all");
        });
    }
}

/// A budget is kept, nothing is lost by it, and what is left is found without a new wake-up.
#[test]
fn a_budget_is_kept() {
    for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
        in_namespace(move || async move {
            let mut source = KernelSource::open(choice, KernelOptions::default()).unwrap().source;
            told(&mut source);
            ip_batch((0..100).map(route));
            let mut rounds = Vec::new();
            loop {
                source.ready().await.unwrap();
                let mut count = 0;
                let drained = source.drain(30, &mut |_| count += 1);
                rounds.push(count);
                if drained == Drained::Empty {
                    break;
                }
            }
            assert_eq!(rounds, [30, 30, 30, 10]);
            // To have caught up is to have read it all, whatever is made of it meanwhile.
            ip_batch((100..300).map(route));
            let mut count = 0;
            source.catch_up(clock::now(), &mut |_| count += 1);
            assert_eq!(count, 200);
        });
    }
}
