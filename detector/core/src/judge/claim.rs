//! A claim that is no route, or not yet.

use super::{Judge, Verdict};
use crate::finding::Claim;
use crate::time::BootTime;

impl Judge<'_> {
    pub(super) fn claim(&mut self, _claim: &Claim) -> Option<(Verdict, BootTime)> {
        None
    }
}
