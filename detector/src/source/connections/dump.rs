//! The connections that are there already, read once from end to end in a thread of its own.

use std::collections::BTreeSet;
use std::io;
use std::thread;

use detector_core::traffic::Translated;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::sync::oneshot;

use super::decode::{SUBSYSTEM, connection};
use super::matters;
use crate::source::interests::Interests;
use crate::source::kernel::wire::{AF_INET, AF_INET6};
use crate::source::netfilter::question;
use crate::source::questions::Questions;

/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1;

/// How many that matter are kept: more of the same tell nothing new.
const MOST: usize = 16_384;

/// What a dump comes to.
pub type DumpedConnections = io::Result<Vec<Translated>>;

/// Reads the table in the network namespace of the calling thread; gives what matters.
pub fn dump(interests: Interests) -> io::Result<oneshot::Receiver<DumpedConnections>> {
    let questions = Questions::open(NETLINK_NETFILTER)?;
    let (tell, told) = oneshot::channel();
    let read = move || {
        let all = read(questions, &interests);
        // It fails where nobody wants to know any more.
        let _ = tell.send(all);
    };
    thread::Builder::new().name("connections".into()).spawn(read)?;
    Ok(told)
}

fn read(mut questions: Questions, interests: &Interests) -> DumpedConnections {
    let mut all = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        questions.dump((SUBSYSTEM << 8) | GET, &question(family, &[]), &mut |message| {
            // One that cannot be read is one that cannot be told; the next may be.
            if let Ok(Some(translated)) = connection(message)
                && matters(&translated, interests)
                && all.len() < MOST
            {
                all.insert(translated);
            }
        })?;
    }
    Ok(all.into_iter().collect())
}
