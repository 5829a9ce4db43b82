//! Rules that translate destinations, as the tools write them, read on the real kernel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;

use detector::source::interests::Interests;
use detector::source::translations::{Told, Translations};
use detector_core::route::Prefix;
use nix::sched::{CloneFlags, unshare};

/// Runs a tool with this input.
fn run(program: &str, arguments: &[&str], input: &str) {
    let mut tool = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: `cargo xtask setup` installs it"));
    tool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(tool.wait().unwrap().success(), "{program} refuses {input}");
}

/// What is told of the rules that `make` makes in a network namespace of its own, as
/// `destination to`, in order.
fn told(make: impl FnOnce() + Send + 'static) -> Option<Vec<String>> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return None;
    }
    let read = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a namespace");
        // So that there is something to tell in any case.
        let marker = "table ip marker {\nchain c {\ntype nat hook prerouting priority dstnat;\n\
                      ip daddr 192.0.2.255 dnat to 192.0.2.254\n}\n}\n";
        run("nft", &["-f", "-"], marker);
        make();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut translations = Translations::open();
            let all = ["0.0.0.0/0", "::/0"]
                .map(|text| Prefix::from(text.parse::<ipnet::IpNet>().unwrap()));
            let mut interests = Interests::default();
            interests.set_ranges(all.to_vec());
            loop {
                match translations.next(&interests).await {
                    Told::Rules(rules) => {
                        let words = rules.iter().map(|rule| format!("{} {}", rule.prefix, rule.to));
                        return words.filter(|words| !words.starts_with("192.0.2.255")).collect();
                    }
                    Told::Sees => {}
                    Told::Blind(why) => panic!("{why}"),
                }
            }
        })
    };
    Some(thread::spawn(read).join().expect("the test in the namespace holds"))
}

fn nft(rules: &str) -> Option<Vec<String>> {
    let (rules, more) = rules.split_once("---").unwrap_or((rules, ""));
    let text = format!(
        "table ip t {{\n{more}\nchain pre {{\ntype nat hook prerouting priority dstnat;\n{rules}\n}}\n}}\n"
    );
    told(move || run("nft", &["-f", "-"], &text))
}

#[test]
fn what_nft_writes_is_read() {
    let cases: [(&str, &[&str]); 14] = [
        ("ip daddr 10.1.0.5 dnat to 10.9.0.1", &["10.1.0.5/32 10.9.0.1"]),
        ("ip daddr 10.1.0.0/24 dnat to 10.9.0.1", &["10.1.0.0/24 10.9.0.1"]),
        ("ip daddr 10.1.16.0/20 dnat to 10.9.0.1", &["10.1.16.0/20 10.9.0.1"]),
        ("ip daddr 10.1.0.5 tcp dport 80 dnat to 10.9.0.1:8080", &["10.1.0.5/32 10.9.0.1"]),
        (
            "ip daddr { 10.1.0.5, 10.1.0.7 } dnat to 10.9.0.1",
            &["10.1.0.5/32 10.9.0.1", "10.1.0.7/32 10.9.0.1"],
        ),
        (
            "ip daddr 10.1.0.4-10.1.0.6 dnat to 10.9.0.1",
            &["10.1.0.4/31 10.9.0.1", "10.1.0.6/32 10.9.0.1"],
        ),
        (
            "dnat to ip daddr map { 10.1.0.5 : 10.9.0.1, 10.1.0.6 : 10.9.0.2 }",
            &["10.1.0.5/32 10.9.0.1", "10.1.0.6/32 10.9.0.2"],
        ),
        ("ip daddr 10.1.0.5 ip daddr != 192.0.2.1 dnat to 10.9.0.1", &["10.1.0.5/32 10.9.0.1"]),
        ("ip daddr != 10.1.0.5 dnat to 10.9.0.1", &[]),
        ("tcp dport 80 dnat to 10.9.0.1", &[]),
        ("ip saddr 10.1.0.5 dnat to 10.9.0.1", &[]),
        (
            "ip daddr 10.1.0.5 jump there\n---\nchain there {\ndnat to 10.9.0.1\n}",
            &["10.1.0.5/32 10.9.0.1"],
        ),
        (
            "ip daddr vmap { 10.1.0.5 : goto there }\n---\nchain there {\ndnat to 10.9.0.1\n}",
            &["10.1.0.5/32 10.9.0.1"],
        ),
        // Nobody goes there.
        ("accept\n---\nchain there {\nip daddr 10.1.0.5 dnat to 10.9.0.1\n}", &[]),
    ];
    for (rules, expected) in cases {
        let Some(read) = nft(rules) else { return };
        assert_eq!(read, expected, "{rules}");
    }
}

#[test]
fn what_nft_writes_of_both_families_is_read() {
    let text = "table inet t {\nchain pre {\ntype nat hook prerouting priority dstnat;\n\
                ip daddr 10.1.0.5 dnat ip to 10.9.0.1\nip6 daddr fd00::5 dnat ip6 to fd00::9\n}\n}\n\
                table ip6 t {\nchain pre {\ntype nat hook prerouting priority dstnat;\n\
                ip6 daddr fd00:1::/64 dnat to fd00::9\n}\n}\n";
    let Some(read) = told(move || run("nft", &["-f", "-"], text)) else { return };
    assert_eq!(read, ["10.1.0.5/32 10.9.0.1", "fd00::5/128 fd00::9", "fd00:1::/64 fd00::9"]);
}

/// Felix' chains, kube-proxy's and portmap's shapes, and what hides behind a jump that says what is not
/// to be.
const IPTABLES: &str = "*nat\n\
    :cali-PREROUTING - [0:0]\n:cali-fip-dnat - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
    :KUBE-SEP-A - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-1 - [0:0]\n:sly - [0:0]\n\
    -A PREROUTING -j cali-PREROUTING\n-A cali-PREROUTING -j cali-fip-dnat\n\
    -A cali-fip-dnat -d {victim} -j DNAT --to-destination {evil}\n\
    -A PREROUTING -j KUBE-SERVICES\n\
    -A KUBE-SERVICES -d {service} -p tcp --dport 80 -j KUBE-SVC-A\n\
    -A KUBE-SVC-A -j KUBE-SEP-A\n\
    -A KUBE-SEP-A -p tcp -j DNAT --to-destination {endpoint}\n\
    -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
    -A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j CNI-DN-1\n\
    -A CNI-DN-1 -p tcp --dport 8080 -j DNAT --to-destination {endpoint}\n\
    -A PREROUTING ! -d {other} -j sly\n\
    -A sly -d {second} -j DNAT --to-destination {evil}\n\
    -A sly ! -d {service} -p udp -j DNAT --to-destination {evil}\n\
    COMMIT\n";

#[test]
fn what_both_iptables_write_is_read() {
    let addresses = [
        ("{victim}", "10.1.0.5", "fd00:1::5"),
        ("{second}", "10.1.0.6", "fd00:1::6"),
        ("{evil}", "10.9.0.1", "fd00:9::1"),
        ("{service}", "10.96.0.1", "fd00:96::1"),
        ("{endpoint}", "10.1.0.9", "fd00:1::9"),
        ("{other}", "192.0.2.1", "2001:db8::1"),
    ];
    for (ipv6, tools) in [
        (false, ["iptables-nft-restore", "iptables-legacy-restore"]),
        (true, ["ip6tables-nft-restore", "ip6tables-legacy-restore"]),
    ] {
        for tool in tools {
            let mut rules = IPTABLES.to_owned();
            for (word, v4, v6) in addresses {
                rules = rules.replace(word, if ipv6 { v6 } else { v4 });
            }
            let Some(read) = told(move || run(tool, &[], &rules)) else { return };
            let expected = if ipv6 {
                ["fd00:1::5/128 fd00:9::1", "fd00:1::6/128 fd00:9::1", "fd00:96::1/128 fd00:1::9"]
            } else {
                ["10.1.0.5/32 10.9.0.1", "10.1.0.6/32 10.9.0.1", "10.96.0.1/32 10.1.0.9"]
            };
            assert_eq!(read, expected, "{tool}");
        }
    }
}
