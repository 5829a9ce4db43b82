//! The node's interfaces, and those that are gone but still spoken of.

use std::collections::{HashMap, VecDeque};

use crate::link::{InterfaceName, Link};
use crate::route::IfIndex;
use crate::time::BootTime;

/// How many interfaces are remembered after they are gone: enough for the churn of a full node
/// within the longest grace.
const GRAVES: usize = 1_024;

/// An interface with its past.
#[derive(Clone, Debug)]
pub(crate) struct KnownLink {
    pub(crate) link: Link,
    /// The name that it bore when it was first seen.
    pub(crate) first_name: InterfaceName,
    /// When it was first seen.
    pub(crate) since: BootTime,
}

/// All interfaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    by_index: HashMap<IfIndex, KnownLink>,
    by_name: HashMap<InterfaceName, IfIndex>,
    graves: HashMap<IfIndex, KnownLink>,
    burials: VecDeque<IfIndex>,
}

impl Links {
    /// The interface of this index, be it gone.
    pub(crate) fn get(&self, index: IfIndex) -> Option<&KnownLink> {
        self.by_index.get(&index).or_else(|| self.graves.get(&index))
    }

    /// The interface of this index, if it stands.
    pub(crate) fn standing(&self, index: IfIndex) -> Option<&KnownLink> {
        self.by_index.get(&index)
    }

    pub(crate) fn by_name(&self, name: &InterfaceName) -> Option<&KnownLink> {
        self.by_name.get(name).and_then(|index| self.by_index.get(index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &KnownLink> {
        self.by_index.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Takes an interface's present state.
    pub(crate) fn apply(&mut self, at: BootTime, link: Link) {
        let index = link.index;
        let name = link.name.clone();
        if let Some(known) = self.by_index.get_mut(&index) {
            let former = std::mem::replace(&mut known.link, link);
            if former.name != name && self.by_name.get(&former.name) == Some(&index) {
                self.by_name.remove(&former.name);
            }
        } else {
            self.graves.remove(&index);
            let known = KnownLink { first_name: name.clone(), link, since: at };
            self.by_index.insert(index, known);
        }
        self.by_name.insert(name, index);
    }

    /// Buries an interface; gives it.
    pub(crate) fn remove(&mut self, index: IfIndex) -> Option<&KnownLink> {
        let gone = self.by_index.remove(&index)?;
        if self.by_name.get(&gone.link.name) == Some(&index) {
            self.by_name.remove(&gone.link.name);
        }
        if self.burials.len() >= GRAVES
            && let Some(oldest) = self.burials.pop_front()
        {
            self.graves.remove(&oldest);
        }
        self.burials.push_back(index);
        self.graves.insert(index, gone);
        self.graves.get(&index)
    }

    /// Takes over the past of an older view of the same interfaces.
    pub(crate) fn remember(&mut self, older: &Self) {
        for (index, known) in &mut self.by_index {
            if let Some(past) = older.by_index.get(index) {
                known.first_name = past.first_name.clone();
                known.since = past.since;
            }
        }
        for index in &older.burials {
            if let Some(grave) = older.graves.get(index)
                && !self.by_index.contains_key(index)
                && self.graves.insert(*index, grave.clone()).is_none()
            {
                self.burials.push_back(*index);
            }
        }
        for (index, known) in &older.by_index {
            if !self.by_index.contains_key(index)
                && self.graves.insert(*index, known.clone()).is_none()
            {
                self.burials.push_back(*index);
            }
        }
        while self.burials.len() > GRAVES {
            if let Some(oldest) = self.burials.pop_front() {
                self.graves.remove(&oldest);
            }
        }
    }
}
