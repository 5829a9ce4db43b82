//! What the chart's schema takes renders, and what it does not is refused, value by value.
//!
//! The extremes follow from the schema: both bounds of a number, each word of a choice, both ways of a
//! switch, and of all else the examples that the schema gives.

use std::fs;

use detector_tests::deploy::{Helm, Manifest, file};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::shared::check_config;

/// The values that another one has no sense without.
const NEEDS: [(&str, &str); 4] = [
    ("metrics.annotations", r#"{"metrics": {"enabled": true}}"#),
    ("metrics.podMonitor.enabled", r#"{"metrics": {"enabled": true}}"#),
    ("metrics.serviceMonitor.enabled", r#"{"metrics": {"enabled": true}}"#),
    ("namespace.create", r#"{"namespace": {"name": "elsewhere"}}"#),
];

/// Not beside the other kind of monitor.
const APART: &str = "metrics.serviceMonitor.enabled";

/// The schema, and a place in it.
#[derive(Clone, Copy)]
struct Place<'a> {
    whole: &'a Value,
    here: &'a Value,
}

/// A value that is no group of others.
struct Leaf<'a> {
    path: String,
    place: Place<'a>,
}

// === impl Place ===

impl<'a> Place<'a> {
    fn of(self, here: &'a Value) -> Self {
        let place = Self { here, ..self };
        match here["$ref"].as_str() {
            Some(pointer) => place.of(self.whole.pointer(pointer.trim_start_matches('#')).unwrap()),
            None => place,
        }
    }

    /// Its leaves; and the paths of groups, which know their members.
    fn walk(self, path: &str, leaves: &mut Vec<Leaf<'a>>, groups: &mut Vec<String>) {
        let is_group = self.here["properties"].is_object()
            && self.here["additionalProperties"] == false
            && self.here["examples"].is_null();
        if !is_group {
            leaves.push(Leaf { path: path.to_owned(), place: self });
            return;
        }
        groups.push(path.to_owned());
        for (name, member) in self.here["properties"].as_object().unwrap() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.of(member).walk(&path, leaves, groups);
        }
    }

    fn extremes(self) -> Vec<Value> {
        let here = self.here;
        if let Some(examples) = here["examples"].as_array() {
            return examples.clone();
        }
        if let Some(words) = here["enum"].as_array() {
            return words.clone();
        }
        if let Some(ways) = here["anyOf"].as_array() {
            return ways.iter().flat_map(|way| self.of(way).extremes()).collect();
        }
        match here["type"].as_str().unwrap() {
            "boolean" => vec![json!(false), json!(true)],
            "integer" => {
                assert!(here["minimum"].is_i64(), "a number without a least: {here}");
                vec![here["minimum"].clone(), here["maximum"].clone()]
            }
            "number" => vec![here["maximum"].clone()],
            "object" => vec![json!({})],
            other => panic!("the schema has no examples of this {other}: {here}"),
        }
    }

    /// Values that it must not take.
    fn refused(self) -> Vec<Value> {
        let here = self.here;
        if let Some(ways) = here["anyOf"].as_array() {
            assert!(ways.iter().all(|way| way["type"] != "boolean"));
            return vec![json!("\n"), json!(true), json!(-1)];
        }
        match here["type"].as_str().unwrap() {
            "boolean" => vec![json!("yes"), json!(1)],
            "integer" => {
                let (least, most) = (here["minimum"].as_i64(), here["maximum"].as_i64());
                vec![json!(least.unwrap() - 1), json!(most.unwrap() + 1), json!("1"), json!(1.5)]
            }
            "string" if here["enum"].is_array() => vec![json!("nonsense"), json!("")],
            "string" if here["pattern"].is_string() => vec![json!("\n"), json!(" a"), json!(1)],
            "string" => vec![json!(1)],
            "array" => vec![json!("text"), json!([[]])],
            "object" => vec![json!("text"), json!([])],
            other => panic!("{other} is no type of these values"),
        }
    }
}

/// A value at its path.
fn nested(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, key| json!({ key: value }))
}

/// Puts one object's fields over another's.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Object(Map::new())), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(file("chart/values.schema.json")).unwrap()).unwrap()
}

fn leaves(schema: &Value) -> (Vec<Leaf<'_>>, Vec<String>) {
    let (mut leaves, mut groups) = (Vec::new(), Vec::new());
    Place { whole: schema, here: schema }.walk("", &mut leaves, &mut groups);
    (leaves, groups)
}

/// The arguments that give these values, and a namespace for the release that no value names.
struct Values {
    _folder: TempDir,
    argument: String,
}

impl Values {
    fn new(values: &Value) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("values.json");
        fs::write(&path, values.to_string()).unwrap();
        Self { argument: format!("--values={}", path.display()), _folder: folder }
    }

    fn arguments(&self) -> [&str; 2] {
        [&self.argument, "--namespace=of-the-release"]
    }
}

/// All values at once: the first extreme of each, or the last.
fn all(last: bool) -> Value {
    let schema = schema();
    let mut values = json!({});
    for Leaf { path, place } in leaves(&schema).0 {
        let mut extremes = place.extremes();
        let extreme = if last { extremes.pop().unwrap() } else { extremes.swap_remove(0) };
        // Of two that exclude each other, the other one.
        let extreme = if path == APART { json!(false) } else { extreme };
        merge(&mut values, nested(&path, extreme));
    }
    values
}

/// The chart with all values at one end, and at the other; with all switches off, and on.
pub(crate) fn ends(helm: &Helm) -> Vec<(&'static str, Manifest)> {
    let schema = schema();
    let switches = |on: bool| {
        let mut values = json!({});
        for Leaf { path, place } in leaves(&schema).0 {
            if place.here["type"] == "boolean" {
                merge(&mut values, nested(&path, json!(on && path != APART)));
            }
        }
        merge(&mut values, json!({ "namespace": { "name": "elsewhere" } }));
        values
    };
    [
        ("all at the first end", all(false)),
        ("all at the last end", all(true)),
        ("all off", switches(false)),
        ("all on", switches(true)),
    ]
    .into_iter()
    .map(|(name, values)| {
        let given = Values::new(&values);
        (name, helm.template(&given.arguments()).unwrap_or_else(|e| panic!("{name}: {e:#}")))
    })
    .collect()
}

#[test]
fn each_value_renders_at_its_extremes() {
    let Some(helm) = Helm::find_or_skip("the extremes of the chart's values") else { return };
    let schema = schema();
    let mut rendered = 0;
    for Leaf { path, place } in leaves(&schema).0 {
        for extreme in place.extremes() {
            let mut values = nested(&path, extreme);
            if let Some((_, needs)) = NEEDS.iter().find(|(name, _)| *name == path) {
                merge(&mut values, serde_json::from_str(needs).unwrap());
            }
            let given = Values::new(&values);
            let manifest = helm.template(&given.arguments());
            let manifest = manifest.unwrap_or_else(|error| panic!("{values}: {error:#}"));
            if path.starts_with("config.") {
                check_config(&values.to_string(), &manifest);
            }
            rendered += 1;
        }
    }
    assert!(rendered > 150, "only {rendered} were tried");
    for (name, manifest) in ends(&helm) {
        check_config(name, &manifest);
    }
}

#[test]
fn what_makes_no_sense_is_refused_where_it_is_typed() {
    let Some(helm) = Helm::find_or_skip("what the chart's schema refuses") else { return };
    let schema = schema();
    let (leaves, groups) = leaves(&schema);
    let unknown = groups.iter().map(|group| match group.as_str() {
        "" => ("misspelt".to_owned(), json!(1)),
        group => (format!("{group}.misspelt"), json!(1)),
    });
    let wrong = leaves
        .iter()
        .flat_map(|leaf| leaf.place.refused().into_iter().map(|value| (leaf.path.clone(), value)));
    let mut refused = 0;
    for (path, value) in unknown.chain(wrong) {
        let values = nested(&path, value);
        let given = Values::new(&values);
        let Some(why) = helm.refusal(&given.arguments()).unwrap() else {
            panic!("{values} is taken");
        };
        assert!(why.contains("the schema"), "{values}: {why}");
        let key = format!("/{}", path.trim_end_matches("misspelt").replace('.', "/"));
        let key = key.trim_end_matches('/');
        assert!(why.contains(&format!("'{key}")), "{values}: it does not say where: {why}");
        refused += 1;
    }
    assert!(refused > 200, "only {refused} were tried");
}

#[test]
fn what_is_taken_away_is_missed_or_done_without() {
    let Some(helm) = Helm::find_or_skip("chart's values that are taken away") else { return };
    let schema = schema();
    let (leaves, groups) = leaves(&schema);
    let leaves = leaves.into_iter().map(|leaf| leaf.path);
    for path in leaves.chain(groups).filter(|path| !path.is_empty()) {
        // By a null, Helm forgets the default.
        let values = nested(&path, Value::Null);
        let given = Values::new(&values);
        match helm.refusal(&given.arguments()).unwrap() {
            None => check_config(&path, &helm.template(&given.arguments()).unwrap()),
            Some(why) => assert!(why.contains("the schema"), "{path}: {why}"),
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_what_to_do() {
    let Some(helm) = Helm::find_or_skip("values that contradict each other") else { return };
    for (arguments, wanted) in [
        (&["--set=metrics.podMonitor.enabled=true"][..], "metrics.enabled=true"),
        (&["--set=metrics.serviceMonitor.enabled=true"], "metrics.enabled=true"),
        (&["--set=metrics.annotations=true"], "metrics.enabled=true"),
        (
            &[
                "--set=metrics.enabled=true,metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true",
            ],
            "enable one of them",
        ),
        (&["--set=namespace.create=true"], "namespace.name"),
        (&["--set=config.listen=none"], "'listen'"),
        (&["--set=config.sinks.alertmanagers[0].name=a"], "alertmanagers/0"),
        (&["--kube-version=1.24.0"], "1.25.0"),
    ] {
        let why = helm.refusal(arguments).unwrap();
        assert!(why.as_ref().is_some_and(|why| why.contains(wanted)), "{arguments:?}: {why:?}");
    }
    assert_eq!(helm.refusal(&["--kube-version=1.25.0"]).unwrap(), None);
}

#[test]
fn every_key_of_the_agents_configuration_is_a_value() {
    let Some(helm) = Helm::find_or_skip("the agent's configuration as values") else { return };
    let text = fs::read_to_string(file("config.example.yaml")).unwrap();
    let mut example: Map<String, Value> = serde_saphyr::from_str(&text).unwrap();
    let own = ["nodeName", "listen", "socket", "state"];
    for key in own {
        assert!(example.remove(key).is_some(), "{key} is no key any more");
    }
    let given = Values::new(&json!({ "config": example }));
    let manifest = helm.template(&given.arguments()).unwrap();
    check_config("the example", &manifest);
    let rendered: Value = serde_saphyr::from_str(manifest.config().unwrap()).unwrap();
    assert_eq!(rendered, Value::Object(example), "it arrives as it was said");
}

#[test]
fn it_lints_strictly_with_default_values_and_with_others() {
    let Some(helm) = Helm::find_or_skip("helm lint") else { return };
    helm.lint(&[]).unwrap();
    let files = fs::read_dir(file("chart/ci")).unwrap();
    for values in files.map(|entry| entry.unwrap().path()) {
        helm.lint(&["--values", &values.to_string_lossy()]).unwrap();
    }
    let given = Values::new(&all(true));
    helm.lint(&given.arguments()).unwrap();
}
