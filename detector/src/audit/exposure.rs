//! Which Calico runs on which node, and whether its Felix acts on annotations (pure).
//!
//! The nearest witness counts: the image of the calico-node pod on the node, then the DaemonSet's, then
//! what Calico wrote about itself. During an upgrade nodes differ, and each is as exposed as its own
//! Felix. What a version says is said "by version": a vendor may have carried the fix over.

use std::collections::BTreeMap;

use super::facts::{CalicoNode, Environment, Facts, Image, Kind, Rollout};
use super::report::Object;
use crate::source::cluster::cni::{PLACES, Switch as Gate};
use crate::source::cluster::version::{Product, Release};
use crate::text::printable;

/// What an audit says of the nodes.
#[derive(Debug)]
pub(super) struct Exposure {
    pub(super) presence: Presence,
    /// The nodes on which Calico runs, by name.
    pub(super) nodes: BTreeMap<Box<str>, NodeState>,
    /// Nodes on which no calico-node runs although it runs on others.
    pub(super) without: Vec<Box<str>>,
    /// What the CNI plugin's configuration says: what was meant where Felix has no switch.
    pub(super) gate: Gated,
}

/// Whether Calico is there at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    Present,
    Absent,
    /// It cannot be told, for want of these.
    Hidden(Vec<Kind>),
}

/// Calico on one node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NodeState {
    pub(super) product: Product,
    /// The version as it is written, or none that anybody can tell.
    pub(super) version: Option<Box<str>>,
    /// Where that is written.
    pub(super) by: Option<Place>,
    pub(super) standing: Standing,
    pub(super) switch: Switch,
}

/// An object and the field of it that says something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) object: Object,
    pub(super) field: Box<str>,
}

/// A version against the affected ranges.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Standing {
    /// It has no switch: it acts on every annotation.
    Affected,
    /// It heeds the switch.
    Fixed,
    /// A build next to the fix: nobody can say from its name.
    Uncertain,
    /// There is no version to be seen.
    Unknown,
}

/// Whether Felix acts on floating IPs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Switch {
    /// Always: this version has no switch.
    Missing,
    On {
        by: Place,
    },
    Off {
        by: Box<str>,
        /// What may say otherwise and cannot be read from here.
        unless: Option<Box<str>>,
    },
    Unknown {
        why: Box<str>,
    },
}

/// What the CNI plugin's configuration says of both switches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Gated {
    /// `floating_ips`; `None` where it could not be read.
    pub(super) floating_ips: Option<bool>,
    /// `ip_addrs_no_ipam`; `None` where it could not be read.
    pub(super) bypass: Option<bool>,
    /// The ConfigMap that says so, or that none does.
    pub(super) by: Box<str>,
    /// The same, where it says that they are on.
    pub(super) on: Option<Place>,
}

/// Looks at all nodes.
pub(super) fn examine(facts: &Facts) -> Exposure {
    let mut nodes = BTreeMap::new();
    let mut without = Vec::new();
    let windows: Vec<&str> =
        facts.nodes.iter().filter(|m| m.windows).map(|m| &*m.node.name.0).collect();
    // Of two pods on one node, in the middle of a rollout, the worse has the say.
    for agent in facts.agents.iter().filter(|agent| !windows.contains(&&*agent.node.0)) {
        let state = of_agent(facts, agent);
        nodes
            .entry(agent.node.0.clone())
            .and_modify(|known: &mut NodeState| {
                if state.danger() > known.danger() {
                    known.clone_from(&state);
                }
            })
            .or_insert(state);
    }
    let presence = presence(facts);
    for member in facts.nodes.iter().filter(|member| !member.windows) {
        let name = &member.node.name.0;
        if nodes.contains_key(name) || presence != Presence::Present {
            continue;
        }
        // Where its pods can be seen, and this node has none, nothing runs there.
        if facts.sees(Kind::Pods) && !facts.agents.is_empty() {
            without.push(name.clone());
        } else {
            nodes.insert(name.clone(), of_node(facts, name));
        }
    }
    // A dump of ConfigMaps and a version alone still says something.
    if nodes.is_empty() && facts.nodes.is_empty() && presence == Presence::Present {
        nodes.insert("*".into(), of_node(facts, "*"));
    }
    Exposure { presence, nodes, without, gate: gate(facts) }
}

// === impl Exposure ===

impl Exposure {
    /// What is so on a node; on the worst of all where it is not known.
    pub(super) fn on(&self, node: &str) -> Option<&NodeState> {
        self.nodes.get(node).or_else(|| self.nodes.get("*")).or_else(|| {
            let known = self.without.iter().any(|name| **name == *node);
            (!known).then(|| self.nodes.values().max_by_key(|state| state.danger())).flatten()
        })
    }
}

// === impl NodeState ===

impl NodeState {
    /// Whether an annotation can have an effect here, as far as anybody can tell.
    pub(super) fn is_open(&self) -> bool {
        match &self.switch {
            Switch::Missing | Switch::On { .. } => true,
            Switch::Off { .. } => false,
            Switch::Unknown { .. } => self.standing == Standing::Uncertain,
        }
    }

    fn danger(&self) -> u8 {
        match self.switch {
            Switch::Missing => 3,
            Switch::On { .. } => 2,
            Switch::Unknown { .. } => 1,
            Switch::Off { .. } => 0,
        }
    }
}

// === impl Place ===

impl Place {
    fn new(kind: &'static str, namespace: Option<&str>, name: &str, field: &str) -> Self {
        let object = Object {
            kind,
            namespace: namespace.map(|namespace| printable(namespace, 63).into()),
            name: printable(name, 260).into(),
            node: None,
        };
        Self { object, field: field.into() }
    }

    /// As people write it.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.object.shown(), self.field)
    }
}

// === impl Product ===

impl Product {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Calico => "Calico",
            Self::Enterprise => "Calico Enterprise",
        }
    }
}

fn presence(facts: &Facts) -> Presence {
    let there = !facts.agents.is_empty()
        || !facts.rollouts.is_empty()
        || facts.information.is_some()
        || facts.installation.is_some()
        || facts.cni.iter().any(Option::is_some)
        || !facts.felix.is_empty()
        || !facts.blocks.is_empty();
    if there {
        return Presence::Present;
    }
    let needed = [Kind::Pods, Kind::DaemonSets, Kind::ClusterInformation];
    let hidden: Vec<Kind> = needed.into_iter().filter(|kind| !facts.sees(*kind)).collect();
    if hidden.is_empty() { Presence::Absent } else { Presence::Hidden(hidden) }
}

fn of_agent(facts: &Facts, agent: &CalicoNode) -> NodeState {
    let CalicoNode { namespace, name, node, image, switch, .. } = agent;
    let place = |field: &str| Place::new("pod", Some(namespace), name, field);
    let version = by_image(facts, image, &place(IMAGE))
        .unwrap_or_else(|| by_calico(facts).or_tag(image, place));
    conclude(facts, version, &node.0, switch, Some(place(ENVIRONMENT)))
}

/// A node whose calico-node pod cannot be seen.
fn of_node(facts: &Facts, node: &str) -> NodeState {
    let Some(Rollout { namespace, name, image, switch }) = facts.rollouts.first() else {
        return conclude(facts, by_calico(facts), node, &Environment::Silent, None);
    };
    let place = |field: &str| Place::new("DaemonSet", Some(namespace), name, field);
    let version = by_image(facts, image, &place(IMAGE))
        .unwrap_or_else(|| by_calico(facts).or_tag(image, place));
    conclude(facts, version, node, switch, Some(place(ENVIRONMENT)))
}

const IMAGE: &str = "image of container calico-node";
const ENVIRONMENT: &str = "env FELIX_FLOATINGIPS of container calico-node";

/// A version, and where it is written.
struct Version {
    product: Product,
    text: Option<Box<str>>,
    by: Option<Place>,
    standing: Standing,
}

// === impl Version ===

impl Version {
    /// Where nothing tells the version, the tag that tells none is shown.
    fn or_tag(mut self, image: &Image, place: impl Fn(&str) -> Place) -> Self {
        let tag = [Some(&image.asked), image.running.as_ref()];
        let tag = tag.into_iter().flatten().find_map(|image| taken_apart(image).1);
        if let (None, Some(tag)) = (&self.by, tag) {
            let tag = printable(tag, 64);
            self.by = Some(place(&format!("{IMAGE}, whose tag {tag} is no version")));
        }
        self
    }
}

/// The version by the tag of an image; `None` where it has none that is a version.
fn by_image(facts: &Facts, image: &Image, by: &Place) -> Option<Version> {
    [Some(&image.asked), image.running.as_ref()].into_iter().flatten().find_map(|image| {
        let (named, tag) = taken_apart(image);
        let tag = tag?;
        let release = Release::parse(tag)?;
        let product = match named {
            // A registry's folder may be called tigera whatever lies in it, and its versions say
            // something else there: what was installed is known better.
            Some(Product::Enterprise) if !is_cnx(image) => {
                installed(facts).unwrap_or(Product::Enterprise)
            }
            Some(named) => named,
            None => installed(facts).unwrap_or(Product::Calico),
        };
        Some(Version {
            product,
            text: Some(printable(tag, 64).into()),
            by: Some(by.clone()),
            standing: standing(release, product),
        })
    })
}

/// The version that Calico wrote about itself, else the operator's: one value for all nodes.
fn by_calico(facts: &Facts) -> Version {
    let product = installed(facts).unwrap_or(Product::Calico);
    let version = |text: &str, kind, field| {
        let release = Release::parse(text);
        Version {
            product,
            text: Some(printable(text, 64).into()),
            by: Some(Place::new(kind, None, "default", field)),
            standing: release.map_or(Standing::Unknown, |release| standing(release, product)),
        }
    };
    if let Some(information) = &facts.information {
        match (product, &information.enterprise) {
            (Product::Calico, _) => {
                return version(&information.text, "ClusterInformation", "spec.calicoVersion");
            }
            (Product::Enterprise, Some(text)) => {
                return version(text, "ClusterInformation", "spec.cnxVersion");
            }
            // Which Calico it is made of is not what its fixes go by.
            (Product::Enterprise, None) => {}
        }
    }
    if let Some(text) = facts.installation.as_ref().and_then(|i| i.version.as_deref()) {
        return version(text, "Installation", "status.calicoVersion");
    }
    Version { product, text: None, by: None, standing: Standing::Unknown }
}

/// The product that Calico or the operator says it is, where either says anything.
fn installed(facts: &Facts) -> Option<Product> {
    let by_calico = facts.information.as_ref().map(|information| information.product);
    let variant = facts.installation.as_ref().map(|installation| &installation.variant);
    match (variant, by_calico) {
        (Some(variant), _) if !variant.eq_ignore_ascii_case("Calico") => Some(Product::Enterprise),
        (_, Some(product)) => Some(product),
        (Some(_), None) => Some(Product::Calico),
        (None, None) => None,
    }
}

/// Whether an image has the name that only Calico Enterprise's has.
fn is_cnx(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split(':').next() == Some("cnx-node")
}

/// An image's product, where its name tells, and its tag, where it has one.
pub(super) fn taken_apart(image: &str) -> (Option<Product>, Option<&str>) {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[slash..].split_once(':') {
        Some((last, tag)) => (&name[..slash + last.len()], Some(tag).filter(|tag| !tag.is_empty())),
        None => (name, None),
    };
    let mut parts = path.rsplit('/');
    let last = parts.next().unwrap_or_default();
    let product = if last == "cnx-node" || parts.clone().any(|part| part == "tigera") {
        Some(Product::Enterprise)
    } else if parts.any(|part| part == "calico") || last.contains("calico") {
        Some(Product::Calico)
    } else {
        None
    };
    (product, tag)
}

fn standing(release: Release, product: Product) -> Standing {
    match release.heeds_switch(product) {
        Some(true) => Standing::Fixed,
        Some(false) => Standing::Affected,
        None => Standing::Uncertain,
    }
}

/// A node's state by its version, and by the environment of its Felix, which `place` names.
fn conclude(
    facts: &Facts,
    version: Version,
    node: &str,
    environment: &Environment,
    place: Option<Place>,
) -> NodeState {
    let Version { product, text, by, standing } = version;
    let shown = text.as_deref().unwrap_or("of an unknown version");
    let switch = match standing {
        Standing::Affected => Switch::Missing,
        Standing::Uncertain => Switch::Unknown {
            why: format!(
                "the build {shown} is next to the fix: ask its vendor whether FelixConfiguration \
                 spec.floatingIPs is heeded"
            )
            .into(),
        },
        Standing::Unknown => Switch::Unknown { why: "no version can be seen".into() },
        Standing::Fixed => switched(facts, node, environment, place),
    };
    NodeState { product, version: text, by, standing, switch }
}

/// Whether the feature is on, where Felix heeds the switch: its environment wins, then
/// `FelixConfiguration` of the node, then the one for all (felix/config/config_params.go).
fn switched(facts: &Facts, node: &str, environment: &Environment, place: Option<Place>) -> Switch {
    let unless = match environment {
        Environment::Elsewhere(sources) => {
            Some(format!("unless {sources} (envFrom of calico-node) sets FELIX_FLOATINGIPS").into())
        }
        _ => None,
    };
    match (environment, place) {
        (Environment::On, Some(by)) => return Switch::On { by },
        (Environment::Off, Some(by)) => {
            return Switch::Off { by: by.shown().into(), unless: None };
        }
        (Environment::Unreadable(why), Some(by)) => {
            return Switch::Unknown { why: format!("{}: {why}", by.shown()).into() };
        }
        _ => {}
    }
    for name in [format!("node.{node}"), "default".to_owned()] {
        let said = facts.felix.get(&*name).and_then(|settings| settings.floating_ips);
        let by = || Place::new("FelixConfiguration", None, &name, "spec.floatingIPs");
        match said {
            Some(true) => return Switch::On { by: by() },
            Some(false) => return Switch::Off { by: by().shown().into(), unless },
            None => {}
        }
    }
    if !facts.sees(Kind::FelixConfigurations) {
        return Switch::Unknown { why: "FelixConfigurations cannot be seen".into() };
    }
    Switch::Off {
        by: "Calico's default: no FelixConfiguration sets spec.floatingIPs".into(),
        unless,
    }
}

/// What the CNI plugin's configuration says; the first place that says anything counts.
fn gate(facts: &Facts) -> Gated {
    let places = || PLACES.iter().zip(&facts.cni);
    let of = |pick: fn(&crate::source::cluster::cni::Switches) -> Gate| {
        places().find_map(|(place, switches)| match pick(switches.as_ref()?) {
            Gate::On => Some((true, place)),
            Gate::Off => Some((false, place)),
            Gate::Absent | Gate::Malformed => None,
        })
    };
    let known = facts.cni.iter().any(Option::is_some) || facts.sees(Kind::CniConfig);
    let default = known.then_some(false);
    let said = of(|switches| switches.floating_ips);
    let by = said.as_ref().map_or_else(
        || "no ConfigMap sets feature_control.floating_ips".into(),
        |(_, place)| format!("{} feature_control.floating_ips", place.object()).into(),
    );
    let on = said.filter(|(on, _)| *on).map(|(_, place)| {
        let field = format!("data.{} feature_control.floating_ips", place.key);
        Place::new("ConfigMap", Some(place.namespace), place.name, &field)
    });
    // Where there is no such ConfigMap at all, the plugin's configuration is kept elsewhere.
    let seen = facts.cni.iter().any(Option::is_some).then_some(false);
    Gated {
        floating_ips: said.map(|(on, _)| on).or(default),
        on,
        bypass: of(|switches| switches.ip_addrs_no_ipam).map(|(on, _)| on).or(seen),
        by,
    }
}

#[cfg(test)]
mod tests;
