//! Reads a cluster by its API server: get and list, nothing else.
//!
//! Lists come in pages, one after the other and no more than so many a second, and each page is taken
//! apart before the next is asked for. What is refused costs the kind that it was, and is told; a server
//! that does not answer, or knows nobody by this token, ends the audit.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, Client, Error, ResourceExt as _};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::facts::{Facts, Kind, Sight};
use super::gather::Gather;
use super::indicators;
use super::progress::Progress;
use crate::source::cluster::cni::PLACES;
use crate::source::cluster::{LeanNode, calico, failure, object, parse, question};
use crate::text::printable;

/// Objects of a page: of pods it is some 3 MiB.
const PAGE: u32 = 500;

/// The least time between two requests: a tenth of what kubectl allows itself.
const PACE: Duration = Duration::from_millis(50);

/// How many namespaces are asked one by one where pods of all may not be listed.
const MOST_NAMESPACES: usize = 200;

/// How many pods are looked at a second time.
const MOST_DOUBTS: usize = 64;

/// What to do where permission is missing.
const REMEDY: &str = "apply deploy/audit-rbac.yaml and bind it to this account";

/// Why there is nothing to say.
#[derive(Error, Debug)]
pub(super) enum CollectError {
    /// The server cannot be asked at all.
    #[error("{0}")]
    Unreachable(Box<str>),
    /// It answers, and says no to everything.
    #[error("nothing of this cluster may be read (403): {REMEDY}")]
    Forbidden,
}

/// One who asks.
struct Reader<'a> {
    client: Client,
    pace: Interval,
    progress: &'a Progress,
    gather: Gather,
}

/// Reads all that an audit looks at. `namespace` is the one that the kubeconfig's context names.
pub(super) async fn collect(
    client: Client,
    namespace: &str,
    gather: Gather,
    progress: &Progress,
) -> Result<Facts, CollectError> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reader = Reader { client, pace, progress, gather };
    reader.greet().await?;
    reader.read(namespace).await?;
    let Reader { client, pace, progress, gather } = reader;
    let mut facts = gather.finish();
    let seen = |sight: &Sight| !matches!(sight, Sight::Nothing(_) | Sight::NotServed);
    if !facts.sight.values().any(seen) {
        return Err(CollectError::Forbidden);
    }
    let again = Reader { client, pace, progress, gather: Gather::default() };
    again.confirm(&mut facts).await?;
    Ok(facts)
}

// === impl Reader ===

impl Reader<'_> {
    /// Asks what anybody with an account may ask.
    async fn greet(&mut self) -> Result<(), CollectError> {
        self.pace.tick().await;
        match self.client.apiserver_version().await {
            Ok(_) => Ok(()),
            // A server that hides its version may show all else.
            Err(Error::Api(status)) if status.code == 403 => Ok(()),
            Err(error) => Err(unreachable("ask for the server's version", &error)),
        }
    }

    async fn read(&mut self, namespace: &str) -> Result<(), CollectError> {
        self.namespaces().await?;
        self.pods(namespace).await?;
        self.all::<LeanNode>(Kind::Nodes, Gather::node).await?;
        self.all::<DaemonSet>(Kind::DaemonSets, Gather::daemon_set).await?;
        self.calico(Kind::ClusterInformation, "ClusterInformation", Gather::cluster_information)
            .await?;
        self.calico(Kind::FelixConfigurations, "FelixConfiguration", Gather::felix).await?;
        self.calico(Kind::IpPools, "IPPool", Gather::pool).await?;
        self.calico(Kind::IpamBlocks, "IPAMBlock", Gather::block).await?;
        let installation = resource("operator.tigera.io", "v1", "Installation", "installations");
        self.dynamic(Kind::Installation, &[installation], Gather::installation).await?;
        self.cni().await?;
        self.all::<Service>(Kind::Services, Gather::service).await?;
        let allowance = resource(object::GROUP, object::VERSION, object::KIND, object::PLURAL);
        self.dynamic(Kind::Allowances, &[allowance], Gather::allowance).await?;
        self.all::<ClusterRole>(Kind::ClusterRoles, Gather::cluster_role).await?;
        self.all::<Role>(Kind::Roles, Gather::role).await?;
        self.all::<ClusterRoleBinding>(Kind::ClusterRoleBindings, Gather::cluster_role_binding)
            .await?;
        self.all::<RoleBinding>(Kind::RoleBindings, Gather::role_binding).await?;
        self.all::<ValidatingAdmissionPolicy>(Kind::AdmissionPolicies, Gather::policy).await?;
        self.all::<ValidatingAdmissionPolicyBinding>(
            Kind::AdmissionPolicies,
            Gather::policy_binding,
        )
        .await
    }

    /// Names only.
    async fn namespaces(&mut self) -> Result<(), CollectError> {
        self.progress.begin("namespaces");
        let api = Api::<Namespace>::all(self.client.clone());
        let mut params = ListParams::default().limit(PAGE);
        loop {
            self.pace.tick().await;
            let page = match api.list_metadata(&params).await {
                Ok(page) => page,
                Err(error) => {
                    let sight = blind(Kind::Namespaces, &error)?;
                    self.gather.saw(Kind::Namespaces, sight);
                    return Ok(());
                }
            };
            for object in &page.items {
                let object: &PartialObjectMeta<Namespace> = object;
                self.gather.namespace(&object.name_any());
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        self.gather.saw(Kind::Namespaces, Sight::All);
        Ok(())
    }

    /// Pods of all namespaces; where that is refused, those of each that can be seen.
    async fn pods(&mut self, own: &str) -> Result<(), CollectError> {
        self.progress.begin("pods");
        let api = Api::<Pod>::all(self.client.clone());
        let refused = match self.list(&api, "pods", ListParams::default(), Gather::pod).await {
            Ok(Listed::All) => {
                self.gather.saw(Kind::Pods, Sight::All);
                return Ok(());
            }
            Ok(Listed::Part(why)) => {
                self.gather.saw(Kind::Pods, Sight::Part(why));
                return Ok(());
            }
            Err(error) => blind(Kind::Pods, &error)?,
        };
        let known = &self.gather.facts().namespaces;
        let mut namespaces: Vec<Box<str>> = known.iter().take(MOST_NAMESPACES).cloned().collect();
        if namespaces.is_empty() {
            namespaces.push(own.into());
        }
        let mut seen = Vec::new();
        for namespace in namespaces {
            let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
            match self.list(&api, "pods", ListParams::default(), Gather::pod).await {
                Ok(_) => seen.push(printable(&namespace, 63)),
                Err(error) => drop(blind(Kind::Pods, &error)?),
            }
        }
        let sight = match (seen.is_empty(), refused) {
            (false, Sight::Nothing(why)) => {
                Sight::Part(format!("only those of {}: {why}", seen.join(", ")).into())
            }
            (_, refused) => refused,
        };
        self.gather.saw(Kind::Pods, sight);
        Ok(())
    }

    /// The places of the CNI plugin's configuration, by name: no other ConfigMap is anybody's business.
    async fn cni(&mut self) -> Result<(), CollectError> {
        let mut seen = Sight::All;
        for place in &PLACES {
            let api = Api::<ConfigMap>::namespaced(self.client.clone(), place.namespace);
            self.pace.tick().await;
            match api.get_opt(place.name).await {
                Ok(Some(object)) => self.gather.config_map(&object),
                Ok(None) => {}
                Err(error) => seen = blind(Kind::CniConfig, &error)?,
            }
        }
        self.gather.saw(Kind::CniConfig, seen);
        Ok(())
    }

    /// All objects of a kind that every server has.
    async fn all<T>(&mut self, kind: Kind, take: fn(&mut Gather, &T)) -> Result<(), CollectError>
    where
        T: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.progress.begin(kind.as_str());
        let api = Api::<T>::all(self.client.clone());
        let sight = match self.list(&api, kind.as_str(), ListParams::default(), take).await {
            Ok(Listed::All) => Sight::All,
            Ok(Listed::Part(why)) => Sight::Part(why),
            Err(error) => blind(kind, &error)?,
        };
        self.gather.saw(kind, sight);
        Ok(())
    }

    /// All objects of a kind of Calico's, in the first group that has it.
    async fn calico(
        &mut self,
        kind: Kind,
        name: &str,
        take: fn(&mut Gather, &DynamicObject),
    ) -> Result<(), CollectError> {
        let groups =
            calico::GROUPS.map(|(group, version)| resource(group, version, name, kind.as_str()));
        self.dynamic(kind, &groups, take).await
    }

    async fn dynamic(
        &mut self,
        kind: Kind,
        resources: &[ApiResource],
        take: fn(&mut Gather, &DynamicObject),
    ) -> Result<(), CollectError> {
        self.progress.begin(kind.as_str());
        for resource in resources {
            let api = Api::<DynamicObject>::all_with(self.client.clone(), resource);
            let sight = match self.list(&api, kind.as_str(), ListParams::default(), take).await {
                Ok(Listed::All) => Sight::All,
                Ok(Listed::Part(why)) => Sight::Part(why),
                Err(error) if failure::is_not_served(&error) => continue,
                Err(error) => blind(kind, &error)?,
            };
            self.gather.saw(kind, sight);
            return Ok(());
        }
        self.gather.saw(kind, Sight::NotServed);
        Ok(())
    }

    /// One list, page by page.
    async fn list<T>(
        &mut self,
        api: &Api<T>,
        what: &str,
        params: ListParams,
        take: fn(&mut Gather, &T),
    ) -> Result<Listed, Error>
    where
        T: Clone + DeserializeOwned + Debug,
    {
        let mut params = params.limit(PAGE);
        let mut read = 0;
        let mut expired = false;
        loop {
            self.pace.tick().await;
            let page = match api.list(&params).await {
                Ok(page) => page,
                // The server has forgotten the version of the first page; it offers to go on with what
                // is there now, so that what changed meanwhile may be missing or double.
                Err(Error::Api(status)) if status.code == 410 && read > 0 => {
                    let token = status.metadata.and_then(|metadata| metadata.continue_);
                    let Some(token) = token.filter(|token| !token.is_empty()) else {
                        return Ok(Listed::Part(format!("the list of {what} expired").into()));
                    };
                    expired = true;
                    params.continue_token = Some(token);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for object in &page.items {
                take(&mut self.gather, object);
            }
            read += u64::try_from(page.items.len()).unwrap_or(u64::MAX);
            let left = page.metadata.remaining_item_count.and_then(|left| u64::try_from(left).ok());
            self.progress.at(read, left);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None if expired => {
                    let why = format!("{what} changed while they were read, which took too long");
                    return Ok(Listed::Part(why.into()));
                }
                None => return Ok(Listed::All),
            }
        }
    }

    /// Looks a second time at pods whose status and IPAM disagree: the two were read one after the
    /// other, and a pod may have come or gone between.
    async fn confirm(mut self, facts: &mut Facts) -> Result<(), CollectError> {
        self.progress.begin("pods again");
        let mut doubts = indicators::doubts(facts).into_iter();
        let looked_at: Vec<_> = doubts.by_ref().take(MOST_DOUBTS).collect();
        facts.unconfirmed = doubts.map(|(key, _)| key).collect();
        for (key, addresses) in looked_at {
            let api = Api::<Pod>::namespaced(self.client.clone(), key.namespace());
            self.pace.tick().await;
            match api.get_opt(key.name()).await {
                Ok(None) => {
                    facts.pods.retain(|resident| resident.pod.key != key);
                    continue;
                }
                Ok(Some(object)) => {
                    self.gather.pod(&object);
                    let again = std::mem::take(&mut self.gather.facts().pods);
                    facts.pods.retain(|resident| resident.pod.key != key);
                    facts.pods.extend(again);
                }
                // What was seen first stays.
                Err(error) => drop(blind(Kind::Pods, &error)?),
            }
            for address in addresses {
                let block = facts.pools.iter().find_map(|pool| pool.block_of(address));
                let Some(cidr) = block else { continue };
                for api in calico::apis(&self.client, "IPAMBlock", "ipamblocks") {
                    self.pace.tick().await;
                    match api.get_opt(&question::block_name(cidr)).await {
                        Ok(Some(object)) => {
                            if let Ok(parsed) = parse::block(&object, cidr) {
                                facts.blocks.retain(|block| block.cidr != cidr);
                                facts.blocks.extend(parsed.value);
                            }
                            break;
                        }
                        Ok(None) => {}
                        Err(error) => drop(blind(Kind::IpamBlocks, &error)?),
                    }
                }
            }
        }
        Ok(())
    }
}

/// How a list ended.
enum Listed {
    All,
    Part(Box<str>),
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: format!("{group}/{version}"),
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// What a refusal means for a kind; an error where it means that nothing can be asked any more.
fn blind(kind: Kind, error: &Error) -> Result<Sight, CollectError> {
    let what = format!("list {}", kind.as_str());
    match error {
        Error::Api(status) if status.code == 401 => Err(unreachable(&what, error)),
        error if failure::is_not_served(error) => Ok(Sight::NotServed),
        // A page that makes no sense costs its kind.
        Error::Api(_) | Error::SerdeError(_) => {
            Ok(Sight::Nothing(failure::reason_with(&what, error, REMEDY)))
        }
        error => Err(unreachable(&what, error)),
    }
}

fn unreachable(what: &str, error: &Error) -> CollectError {
    CollectError::Unreachable(failure::reason_with(what, error, REMEDY))
}
