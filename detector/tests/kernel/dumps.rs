//! Dumps: what they hold, and how they fail.

use std::sync::Arc;
use std::time::Duration;

use detector::source::kernel::{
    BATCH, Dump, DumpError, DumpOptions, DumpStep, DumpTotals, is_uplink,
};
use detector_core::observation::KernelState;

use crate::namespace::{in_namespace, index, ip, ip_batch, settings, whole};
use crate::tables::Tables;

/// What a dump comes to from here on.
async fn rest(dump: &mut Dump) -> Result<DumpTotals, DumpError> {
    loop {
        if let DumpStep::Ended(end) = dump.next().await {
            return end;
        }
    }
}

#[test]
fn a_dump_holds_everything_in_its_order() {
    in_namespace(|| async {
        ip("route add 10.65.0.1 dev cali1");
        ip("route add 10.65.0.2 dev cali1 table 5000");
        ip("nexthop add id 1 dev cali1");
        ip("-6 route add fd00::1 dev cali1");
        ip("rule add lookup 5000 pref 100");
        ip("-6 rule add lookup 5000 pref 100");
        let mut dump = Dump::start(whole()).unwrap();
        let mut states = Vec::new();
        let totals = loop {
            match dump.next().await {
                DumpStep::Part(part) => states.extend(part),
                DumpStep::Ended(totals) => break totals.unwrap(),
            }
        };
        assert_eq!(totals.states, states.len() as u64);
        assert_eq!((totals.unparsed, totals.interrupted), (0, false));
        let section = |state: &KernelState| match state {
            KernelState::Link(_) => 0,
            KernelState::NextHop(..) => 1,
            KernelState::Rule(rule) if rule.ipv4 => 2,
            KernelState::Rule(_) => 3,
            KernelState::Route(route) if route.prefix.is_ipv4() => 4,
            KernelState::Route(_) => 5,
            KernelState::Neighbour(_) => 6,
        };
        let order: Vec<_> = states.iter().map(section).collect();
        assert!(order.is_sorted(), "{order:?}");
        let count = |wanted| order.iter().filter(|section| **section == wanted).count();
        // lo and two pairs; the kernel's own rules, and one each.
        assert_eq!([0, 1, 2, 3].map(count), [5, 1, 4, 3]);
        assert!(count(4) >= 2 && count(5) >= 1);
    });
}

#[test]
fn a_table_full_of_transit_routes_is_left_out() {
    in_namespace(|| async {
        const ROUTES: u64 = 20_000;
        let route = |n: u64| format!("route add 11.{}.{}.0/24 dev eth0", n / 256, n % 256);
        ip_batch((0..ROUTES).map(route));
        ip("route add 11.0.0.1 dev eth0");
        ip("route add 12.0.0.0/24 dev cali1");
        let (tables, totals) = Tables::dump(DumpOptions { settings: settings(), ..whole() }).await;
        // And the network of eth0's own address.
        assert_eq!(totals.filtered, ROUTES + 1);
        let told: Vec<_> = tables.routes.iter().map(|route| route.prefix.to_string()).collect();
        assert!(told.contains(&"11.0.0.1/32".into()) && told.contains(&"12.0.0.0/24".into()));
        let eth0 = &tables.links[&index("eth0")];
        assert!(is_uplink(&settings(), eth0));
        let (tables, totals) = Tables::dump(whole()).await;
        assert_eq!(totals.filtered, 0);
        assert!(tables.routes.len() as u64 > ROUTES);
    });
}

/// Next hops that fill more batches than wait between the dump and whoever takes them, so that the
/// dump is held up in the middle of them.
const NEXT_HOPS: usize = 12 * BATCH;

#[test]
fn a_table_that_changes_while_it_is_read_is_an_interruption() {
    in_namespace(|| async {
        ip_batch((1..=NEXT_HOPS).map(|id| format!("nexthop add id {id} blackhole")));
        let mut dump = Dump::start(whole()).unwrap();
        assert!(matches!(dump.next().await, DumpStep::Part(part) if part.len() == BATCH));
        ip("nexthop add id 1000000 blackhole");
        let interrupted = rest(&mut dump).await.unwrap_err();
        assert!(matches!(interrupted, DumpError::Interrupted("next hops")), "{interrupted}");

        // The same, but wanted all the same.
        let options = DumpOptions { accept_interrupted: true, ..whole() };
        let mut dump = Dump::start(options).unwrap();
        assert!(matches!(dump.next().await, DumpStep::Part(_)));
        ip("nexthop add id 1000001 blackhole");
        let totals = rest(&mut dump).await.unwrap();
        assert!(totals.interrupted && totals.states > NEXT_HOPS as u64);

        // And undisturbed.
        let totals = rest(&mut Dump::start(whole()).unwrap()).await.unwrap();
        assert!(!totals.interrupted);
    });
}

#[test]
fn a_dump_that_nobody_takes_is_given_up() {
    in_namespace(|| async {
        ip_batch((1..=NEXT_HOPS).map(|id| format!("nexthop add id {id} blackhole")));
        // Not a moment to wait in: what has been read by then is taken, and then it is over.
        let timeout = Duration::ZERO;
        let mut dump = Dump::start(DumpOptions { timeout, ..whole() }).unwrap();
        let error = rest(&mut dump).await.unwrap_err();
        assert!(matches!(error, DumpError::TimedOut(after) if after == timeout), "{error}");
        drop(dump);
        // Its thread holds the settings until it has ended, which it does for want of a taker.
        let settings = settings();
        let options = DumpOptions { settings: Arc::clone(&settings), ..whole() };
        let mut dump = Dump::start(options).unwrap();
        assert!(matches!(dump.next().await, DumpStep::Part(_)));
        drop(dump);
        let ended = tokio::task::spawn_blocking(move || {
            while Arc::strong_count(&settings) > 1 {
                std::thread::yield_now();
            }
        });
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
    });
}
