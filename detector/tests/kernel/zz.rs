use crate::namespace::*;
use crate::tables::Tables;
use detector::clock;
use detector::config::RouteSource;
use detector::source::kernel::*;
#[test]
fn adhoc() {
    in_namespace(|| async {
        ip_batch((0..100_000u64).map(|n| {
            format!("route add 10.{}.{}.{} dev cali1", 64 + n / 65536, n / 256 % 256, n % 256)
        }));
        for _ in 0..3 {
            let t = std::time::Instant::now();
            let mut dump = Dump::start(whole()).unwrap();
            let mut n = 0;
            loop {
                match dump.next().await {
                    DumpStep::Part(p) => n += p.len(),
                    DumpStep::Ended(e) => {
                        e.unwrap();
                        break;
                    }
                }
            }
            eprintln!("dump {n} {:?}", t.elapsed());
        }
        let _ = Tables::default();
        for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
            let mut source = open(choice);
            told(&mut source);
            let mut lat = vec![];
            let h = tokio::task::spawn_blocking(move || {
                for n in 0..300 {
                    ip(&format!(
                        "route {} 11.0.0.1 dev cali1",
                        if n % 2 == 0 { "add" } else { "del" }
                    ));
                }
            });
            while lat.len() < 300 {
                source.ready().await.unwrap();
                source.drain(1000, &mut |o| lat.push(clock::now().since(o.at)));
            }
            h.await.unwrap();
            lat.sort();
            eprintln!("{} p50 {:?} p99 {:?}", source.as_str(), lat[150], lat[297]);
        }
        let mut source = open(RouteSource::Ebpf);
        told(&mut source);
        let mut socket = netlink_sys::Socket::new(0).unwrap();
        socket.bind_auto().unwrap();
        let forged: &[u8] = &[
            28, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0,
        ];
        let _ = socket.send_to(forged, &netlink_sys::SocketAddr::new(0, 64), 0);
        eprintln!("forged to ebpf: {:?}", told(&mut source));
    });
}
