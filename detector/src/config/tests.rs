//! What is taken, what is refused, and with which words.

use std::path::Path;

use super::*;

const PATH: &str = "detector.yaml";

fn resolve(text: &str) -> Result<Config, ConfigError> {
    let args = RunArgs { node_name: Some("a".into()), ..RunArgs::default() };
    Config::resolve(&args, &File::parse(Path::new(PATH), text)?)
}

/// The one line that a file is refused with.
#[track_caller]
fn refusal(text: &str) -> String {
    let line = resolve(text).expect_err("it must be refused").to_string();
    assert!(!line.contains('\n') && line.is_ascii(), "{line:?}");
    line.strip_prefix("detector.yaml:").unwrap_or(&line).to_owned()
}

fn entry(cidr: &str) -> String {
    let cidr = serde_json::to_string(cidr).unwrap();
    format!("floatingIPs:\n  allow:\n  - {{cidr: {cidr}, namespace: a, serviceAccount: b}}\n")
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "{}\n"] {
        let config = resolve(text).unwrap();
        assert!(config.api);
        assert_eq!(config.kubeconfig, None);
        assert_eq!(config.route_source, RouteSource::Auto);
        assert_eq!(config.output, Output::Json);
        assert_eq!(*config.interface_prefixes, ["cali".into()]);
        assert_eq!(config.newborn, Duration::from_secs(10));
        assert_eq!(config.settle, Duration::from_secs(2));
        assert_eq!(config.remote, Duration::from_secs(30));
        assert_eq!(config.sync, Duration::from_secs(15));
        assert_eq!(config.resync_interval, Duration::from_mins(10));
        assert_eq!(config.ring_bytes, 4_194_304);
        assert_eq!(config.allowed, []);
    }
}

const FULL: &str = "\
nodeName: worker-1
kubeconfig: /etc/kubeconfig
api: {enabled: false}
routeSource: netlink
output: text
interfacePrefixes: [cali, eni]
uplinks: [eth0]
grace:
  newborn: 20s
  settle: 500ms
  remote: 1m
  sync: 0s
resyncInterval: 2h
ringBytes: 65536
floatingIPs:
  allow:
  - cidr: 192.0.2.16/28
    namespace: edge
    serviceAccount: gateway
    expires: 2130-01-31T18:00:00+01:00
    reason: 'the VIPs: #42'
  - {cidr: '2001:db8::/64', namespace: edge, serviceAccount: gateway}
";

#[test]
fn every_key_is_taken_and_shown() {
    let file = File::parse(Path::new(PATH), FULL).unwrap();
    let config = Config::resolve(&RunArgs::default(), &file).unwrap();
    assert_eq!(&*config.node.0, "worker-1");
    assert_eq!(config.kubeconfig.as_deref(), Some(Path::new("/etc/kubeconfig")));
    assert!(!config.api);
    assert_eq!(config.settle, Duration::from_millis(500));
    assert_eq!(config.sync, Duration::ZERO);
    assert_eq!(config.resync_interval, Duration::from_hours(2));
    assert_eq!(config.allowed.len(), 2);
    assert_eq!(config.allowed[0].allowance.reason.as_deref(), Some("the VIPs: #42"));
    assert_eq!(config.allowed[0].expires, Some("2130-01-31T17:00:00Z".parse().unwrap()));
    assert_eq!(config.settings().remote, Duration::from_mins(1));

    let yaml = config.to_yaml().unwrap();
    assert!(yaml.contains("cidr: 192.0.2.16/28 # origin: configuration\n"), "{yaml}");
    assert!(yaml.contains("expires: \"2130-01-31T17:00:00Z\"\n"), "{yaml}");
    let again = File::parse(Path::new(PATH), &yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    assert_eq!(Config::resolve(&RunArgs::default(), &again).unwrap(), config, "{yaml}");
}

#[test]
fn flags_win_over_the_file() {
    let file = File::parse(Path::new(PATH), FULL).unwrap();
    let args = RunArgs {
        node_name: Some("worker-2".into()),
        kubeconfig: Some("/tmp/k".into()),
        route_source: Some(RouteSource::Ebpf),
        output: Some(Output::Json),
        ..RunArgs::default()
    };
    let config = Config::resolve(&args, &file).unwrap();
    assert_eq!(&*config.node.0, "worker-2");
    assert_eq!(config.kubeconfig.as_deref(), Some(Path::new("/tmp/k")));
    assert_eq!((config.route_source, config.output), (RouteSource::Ebpf, Output::Json));
    let args = RunArgs { no_api: true, ..RunArgs::default() };
    let file_with_api = File { api: Api { enabled: Some(true) }, ..file };
    assert!(!Config::resolve(&args, &file_with_api).unwrap().api);
    // An empty variable in a manifest is an unset one.
    let args = RunArgs { node_name: Some(String::new()), ..RunArgs::default() };
    assert_eq!(&*Config::resolve(&args, &file_with_api).unwrap().node.0, "worker-1");
}

#[test]
fn a_node_must_have_a_name() {
    let error = Config::resolve(&RunArgs::default(), &File::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the node's name is missing: set NODE_NAME (in a DaemonSet from fieldRef spec.nodeName), \
         --node-name or nodeName"
    );
    let args = RunArgs { node_name: Some("$(NODE_NAME)".into()), ..RunArgs::default() };
    assert_eq!(
        Config::resolve(&args, &File::default()).unwrap_err().to_string(),
        "--node-name (NODE_NAME): \"$(NODE_NAME)\" is no node's name: \
         write it as `kubectl get nodes` shows it"
    );
    assert_eq!(
        refusal("nodeName: 'a b'\n"),
        "1:11: nodeName \"a b\" is no node's name: write it as `kubectl get nodes` shows it"
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    assert_eq!(refusal("nodename: a\n"), "1:1: nodename is no key here: did you mean nodeName?");
    assert_eq!(
        refusal("grace:\n  new-born: 1s\n"),
        "2:3: new-born is no key here: did you mean newborn?"
    );
    assert_eq!(
        refusal("grace: {patience: 1s}\n"),
        "1:9: patience is no key here: write one of newborn, settle, remote, sync"
    );
    assert_eq!(
        refusal("floatingIPs:\n  allow:\n  - cidr: 10.0.0.0/8\n    nameSpace: a\n"),
        "4:5: nameSpace is no key here: did you mean namespace?"
    );
    assert_eq!(refusal("output: json\noutput: text\n"), "2:1: output is there twice: keep one");
}

#[test]
fn wrong_types_and_broken_yaml_are_one_line() {
    let cases = [
        ("grace: 10s\n", "1:8: grace must be keys with values: write `key: value`, one a line"),
        ("- a\n", "1:1: must be keys with values: write `key: value`, one a line"),
        ("api: {enabled: maybe}\n", "1:16: api must be true or false"),
        ("ringBytes: many\n", "1:12: ringBytes must be a whole number"),
        ("uplinks: eth0\n", "1:10: uplinks must be a list: write [a, b]"),
        ("nodeName: [a\n", "1:11: nodeName must be one text: write it in quotes"),
        ("nodeName: \"a\n", "1:11: nodeName is not YAML: unclosed quote; correct it"),
        ("nodeName: &a [*a]\n", "1:14: nodeName must be one text: write it in quotes"),
    ];
    for (text, line) in cases {
        assert_eq!(refusal(text), line);
    }
    // More than one document: the second would be passed over in silence.
    assert!(refusal("output: json\n---\noutput: text\n").contains("is not YAML: "));
    assert_eq!(
        refusal("floatingIPs:\n  allow:\n  - cidr: 10.0.0.0/8\n    namespace: a\n"),
        "4:5: serviceAccount is missing: an entry needs cidr, namespace and serviceAccount"
    );
}

#[test]
fn words_and_numbers_are_refused_with_what_to_write() {
    let cases = [
        ("routeSource: epbf\n", "1:14: routeSource \"epbf\" is not known: did you mean ebpf?"),
        ("output: xml\n", "1:9: output \"xml\" is not known: write one of json, text"),
        (
            "grace:\n  newborn: 10\n",
            "2:12: grace.newborn \"10\" is no duration: \
             write a whole number and ms, s, m or h, such as 10s",
        ),
        ("grace: {settle: 2h}\n", "1:17: grace.settle \"2h\" is out of range: write 0s to 1h"),
        ("resyncInterval: 1s\n", "1:17: resyncInterval \"1s\" is out of range: write 10s to 24h"),
        (
            "resyncInterval: 99999999999999999999h\n",
            "1:17: resyncInterval \"99999999999999999999h\" is no duration: \
             write a whole number and ms, s, m or h, such as 10s",
        ),
        (
            "ringBytes: 1000000\n",
            "1:12: ringBytes 1000000 is no size for the ring: \
             write a power of two from 65536 to 1073741824",
        ),
        (
            "interfacePrefixes: []\n",
            "1:20: interfacePrefixes is empty: every interface would be without a pod; write [cali]",
        ),
        (
            "interfacePrefixes: [calico]\n",
            "1:21: interfacePrefixes \"calico\" cannot begin a pod's interface: \
             write 1 to 4 characters such as cali, Calico adds 11 digits",
        ),
        ("uplinks: [eth0, eth0]\n", "1:17: uplinks is listed twice: keep one"),
        (
            "uplinks: [a/b]\n",
            "1:11: uplinks \"a/b\" is no interface's name: write it as `ip link` shows it",
        ),
        ("kubeconfig: ''\n", "1:13: kubeconfig is empty: write a path, or leave the key out"),
    ];
    for (text, line) in cases {
        assert_eq!(refusal(text), line);
    }
}

#[test]
fn cidrs_are_written_in_one_way_only() {
    for good in ["192.0.2.1/32", "10.0.0.0/8", "2001:db8::/64", "2001:db8::1/128", "128.0.0.0/1"] {
        let config = resolve(&entry(good)).unwrap();
        assert_eq!(config.allowed[0].allowance.cidr.to_string(), good);
    }
    let not_a_cidr = "is not a CIDR: write address/length, such as 192.0.2.16/28";
    let cases = [
        ("10.0.0.1/24", "has host bits set: did you mean 10.0.0.0/24?"),
        ("2001:db8::1/64", "has host bits set: did you mean 2001:db8::/64?"),
        ("10.0.0.1", "is an address, not a CIDR: write 10.0.0.1/32"),
        ("::ffff:10.0.0.1", "is an address, not a CIDR: write 10.0.0.1/32"),
        ("010.0.0.0/8", "has leading zeros, which some read as octal: write it without"),
        ("10.0.0.0/08", "has leading zeros, which some read as octal: write it without"),
        ("::ffff:10.0.0.0/104", "is an IPv4-mapped IPv6 address: write it as IPv4, 10.0.0.0/..."),
        ("0.0.0.0/0", "would allow every address there is: write the range that is yours"),
        ("::/0", "would allow every address there is: write the range that is yours"),
        ("10.0.0.0/33", "has no length from 1 to 32 behind the slash: write one"),
        ("2001:db8::/129", "has no length from 1 to 128 behind the slash: write one"),
        ("10.0.0.0/", "has no length from 1 to 32 behind the slash: write one"),
        ("10.0.0.0/+8", "has no length from 1 to 32 behind the slash: write one"),
        ("10.0.0/24", not_a_cidr),
        ("fe80::1%eth0/128", not_a_cidr),
        ("", not_a_cidr),
        ("10.0.0.0/8/8", "has no length from 1 to 32 behind the slash: write one"),
        (
            "169.254.169.254/32",
            "is loopback, link-local or multicast, never a floating IP: remove it",
        ),
        ("::1/128", "is loopback, link-local or multicast, never a floating IP: remove it"),
        ("ff02::/16", "is loopback, link-local or multicast, never a floating IP: remove it"),
    ];
    for (cidr, problem) in cases {
        let line = format!("3:12: floatingIPs.allow.cidr \"{cidr}\" {problem}");
        assert_eq!(refusal(&entry(cidr)), line);
    }
    assert_eq!(
        refusal(&entry("10.0.0.0/8\n10.0.0.0/8")),
        "3:12: floatingIPs.allow.cidr \"10.0.0.0/8\\n10.0.0.0/8\" \
         has white space or a line break in it: write only the CIDR"
    );
}

#[test]
fn an_entry_is_for_one_service_account_of_one_namespace() {
    let with = |namespace: &str, account: &str| {
        format!(
            "floatingIPs:\n  allow:\n  - cidr: 192.0.2.0/24\n    namespace: '{namespace}'\n    \
             serviceAccount: '{account}'\n"
        )
    };
    assert_eq!(
        refusal(&with("*", "b")),
        "4:16: floatingIPs.allow.namespace \"*\" is no namespace: \
         write one name, patterns are not taken"
    );
    assert_eq!(
        refusal(&with("a", "team-*")),
        "5:21: floatingIPs.allow.serviceAccount \"team-*\" is no service account: \
         write one name, patterns are not taken"
    );
    let twice =
        entry("192.0.2.0/24") + "  - {cidr: 192.0.2.0/24, namespace: a, serviceAccount: b}\n";
    assert_eq!(
        refusal(&twice),
        "4:12: floatingIPs.allow.cidr is allowed twice to this service account: keep one entry"
    );
}

#[test]
fn an_entry_can_expire() {
    let expiring =
        |time: &str| entry("192.0.2.0/24").replace('}', &format!(", expires: '{time}'}}"));
    let good = [
        ("2030-01-31T18:00:00Z", "2030-01-31T18:00:00Z"),
        ("2030-01-31T18:00:00.25-05:30", "2030-01-31T23:30:00.25Z"),
    ];
    for (text, meant) in good {
        let config = resolve(&expiring(text)).unwrap();
        assert_eq!(config.allowed[0].expires, Some(meant.parse().unwrap()));
    }
    for text in ["2030-01-31", "2030-02-30T00:00:00Z", "2030-01-31T18:00:00", "1h", ""] {
        let line = refusal(&expiring(text));
        let why = format!(
            "floatingIPs.allow.expires \"{text}\" is no time: write date, time and zone, such as \
             2030-01-31T18:00:00Z"
        );
        assert!(line.ends_with(&why), "{line}");
    }
    // What has expired is no mistake, but it is said.
    let yaml = resolve(&expiring("2020-01-01T00:00:00Z")).unwrap().to_yaml().unwrap();
    assert!(yaml.contains("# origin: configuration; not in force: it has expired\n"), "{yaml}");
}

#[test]
fn durations_are_shown_as_they_are_read() {
    for text in ["0s", "1ms", "1500ms", "10s", "90s", "10m", "1h"] {
        let duration = value::duration(text, Duration::ZERO, Duration::MAX).unwrap();
        assert_eq!(value::shown_duration(duration), text);
    }
}
