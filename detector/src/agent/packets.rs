//! The part of the agent that has to do with packets: what is counted, what connections show, and what
//! rules translate.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use detector_core::observation::{Sense, What};
use detector_core::route::Prefix;
use tokio::sync::oneshot;
use tracing::info;

use super::{Agent, BUDGET};
use crate::config::{Hook, PacketSource, RouteSource};
use crate::source::connections::{self, Connections, DumpedConnections};
use crate::source::packets::{Hooks, Packets};
use crate::source::translations::Told;

/// The name of the capability that filtering connections in the kernel is.
const FILTER: &str = "connection-filter";

/// How soon it is tried again to listen to connection tracking.
const REOPEN: Duration = Duration::from_mins(1);

impl Agent {
    /// Loads the packet programs, if they are wanted.
    pub(super) fn begin_to_count(&mut self, choice: PacketSource) {
        let loaded = match choice {
            _ if self.refused.has(Hook::Packets) => {
                Err("the programs on interfaces are to be refused (--refuse packets)".to_owned())
            }
            PacketSource::Off => Err("packets are not to be watched (--packets off)".to_owned()),
            PacketSource::Auto => Packets::load(Hooks::Best).map_err(|error| error.to_string()),
            PacketSource::Filters => {
                Packets::load(Hooks::Filters).map_err(|error| error.to_string())
            }
        };
        match loaded {
            Ok(packets) => {
                info!(hooks = packets.hooks().as_str(), "counting packets");
                self.packets = Some(packets);
                self.observe(What::Counting(true));
            }
            Err(why) => self.blind(Sense::Packets, &why),
        }
    }

    /// Tries again to listen to connection tracking, now and then, where it could not be.
    pub(super) fn listen_again(&mut self, choice: RouteSource) {
        if self.connections.is_none() && self.dumped.is_none() && Instant::now() >= self.reopen {
            self.begin_to_listen(choice);
        }
    }

    /// Listens to connection tracking, and reads what it knows already.
    pub(super) fn begin_to_listen(&mut self, choice: RouteSource) {
        self.reopen = Instant::now() + REOPEN;
        let filters = choice != RouteSource::Netlink && !self.refused.has(Hook::Connections);
        match Connections::open(filters, &self.interests) {
            Ok((connections, degraded)) => {
                match degraded {
                    Some(why) => self.health.degrade(FILTER, &why),
                    None => self.health.restore(FILTER),
                }
                self.connections = Some(connections);
                // What it sees is told when the table was read.
                self.look_at_connections();
            }
            Err(error) => self.blind(Sense::Connections, &error.to_string()),
        }
    }

    /// Reads what the packet programs have counted, unless that was done just now.
    pub(super) fn look_at_packets(&mut self) {
        let Some(packets) = self.packets.as_mut().filter(|packets| packets.is_rested()) else {
            return;
        };
        let pretended = packets.pretended().into_iter().map(What::Pretended);
        let all: Vec<What> =
            pretended.chain(packets.changed().into_iter().map(What::Traffic)).collect();
        for what in all {
            self.observe(what);
        }
    }

    /// An address matters wherever it is translated, from now on or no longer.
    pub(super) fn watch_translations(&mut self, address: IpAddr, watch: bool) {
        match (watch, &mut self.connections) {
            (true, Some(connections)) => connections.watch(address),
            (false, Some(connections)) => connections.unwatch(address),
            (_, None) => {}
        }
        if watch {
            self.interests.watch(address);
        } else {
            self.interests.unwatch(address);
        }
        self.translations.reconsider_address(address);
    }

    /// Addresses in these ranges matter.
    pub(super) fn range_translations(&mut self, ranges: Vec<Prefix>) {
        let before = self.interests.set_ranges(ranges);
        if let Some(connections) = &mut self.connections {
            connections.ranges(&before, self.interests.ranges());
        }
        self.translations.reconsider();
        self.look_at_connections();
    }

    /// Reads the connections that are there already.
    pub(super) fn look_at_connections(&mut self) {
        if self.connections.is_none() {
            return;
        }
        match connections::dump(self.interests.clone()) {
            Ok(dumped) => self.dumped = Some(dumped),
            Err(error) => self.blind(Sense::Connections, &format!("no dump: {error}")),
        }
    }

    pub(super) fn hear_connections(&mut self) {
        let Some(connections) = &mut self.connections else { return };
        let mut heard = Vec::new();
        connections.drain(BUDGET, &self.interests, &mut |translated| heard.push(translated));
        let loss = connections.take_loss();
        for translated in heard {
            self.observe(What::Translated(translated));
        }
        if let Some(why) = loss {
            self.blind(Sense::Connections, &why);
            self.look_at_connections();
        }
    }

    pub(super) fn dumped(&mut self, dumped: DumpedConnections) {
        match dumped {
            Ok(all) => {
                for translated in all {
                    self.observe(What::Translated(translated));
                }
                self.senses.sees(Sense::Connections);
                self.observe(What::Blind(Sense::Connections, None));
            }
            Err(error) => {
                let why = format!("the table of connections cannot be read: {error}");
                self.blind(Sense::Connections, &why);
                // A module may be missing that comes later: it is all tried again.
                self.connections = None;
            }
        }
    }

    pub(super) fn translated(&mut self, told: Told) {
        match told {
            Told::Rules(rules) => self.observe(What::TranslationRules(rules)),
            Told::Blind(why) => self.blind(Sense::Translations, &why),
            Told::Sees => {
                self.senses.sees(Sense::Translations);
                self.observe(What::Blind(Sense::Translations, None));
            }
        }
    }
}

/// Waits for packets of interest; for ever where nobody counts.
pub(super) async fn packets_ready(packets: &mut Option<Packets>) -> std::io::Result<()> {
    match packets {
        Some(packets) => packets.ready().await,
        None => std::future::pending().await,
    }
}

/// Waits for translated connections; for ever where nobody tells of them.
pub(super) async fn connections_ready(
    connections: &mut Option<Connections>,
) -> std::io::Result<()> {
    match connections {
        Some(connections) => connections.ready().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a dump of connections; for ever where none goes on.
pub(super) async fn dumped(
    dumped: &mut Option<oneshot::Receiver<DumpedConnections>>,
) -> DumpedConnections {
    let Some(receiver) = dumped else { return std::future::pending().await };
    let result = receiver.await;
    *dumped = None;
    result.unwrap_or_else(|_| Err(std::io::Error::other("the reading broke off")))
}
