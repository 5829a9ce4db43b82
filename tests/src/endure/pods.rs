//! How a pod begins and ends on a node with Calico: in the order of the CNI plugin and the kubelet.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::world::{ELSEWHERE, HERE, Stage, World, annotate, split};
use crate::pretend;

/// A pod that runs.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    here: bool,
}

// === impl Running ===

impl Running {
    /// Makes a pod: IPAM's record, the interface and the route, the annotations, the status.
    pub(super) fn start(world: &World, name: String, here: bool, rng: &mut Rng) -> Result<Self> {
        let (namespace, pod) = split(&name)?;
        let object = pretend::pod(namespace, pod, if here { HERE } else { ELSEWHERE });
        world.write(Some(409), |objects| objects.create(&object).map(drop))?;
        let address = world.allocate(&name, here, rng)?;
        if here {
            world.wires.attach(&name, address)?;
            world.say(format!("{name} is wired with {address}"));
        }
        let annotations = annotate(&pretend::annotations(Some(address)));
        world
            .write(None, |objects| objects.patch("pods", namespace, pod, &annotations).map(drop))?;
        // The kubelet is not in haste.
        world.pause(Duration::from_millis(rng.u64(..400)), Stage::Calm);
        let status = pretend::running(address);
        world.write(None, |objects| {
            objects.patch_status("pods", namespace, pod, &status).map(drop)
        })?;
        world.count_pod();
        Ok(Self { name, address, here })
    }

    /// Ends it: it is told to end, the annotations, the interface, IPAM's record, the object.
    pub(super) fn end(self, world: &World, rng: &mut Rng) -> Result<()> {
        let (namespace, pod) = split(&self.name)?;
        world.write(Some(404), |objects| objects.terminate(namespace, pod))?;
        world.pause(Duration::from_millis(rng.u64(..500)), Stage::Calm);
        let annotations = annotate(&pretend::annotations(None));
        world
            .write(None, |objects| objects.patch("pods", namespace, pod, &annotations).map(drop))?;
        if self.here {
            world.wires.detach(&self.name)?;
            world.say(format!("{} is no longer wired", self.name));
        }
        world.release(self.address, self.here)?;
        world.pause(Duration::from_millis(rng.u64(..500)), Stage::Calm);
        world.write(Some(404), |objects| objects.remove("pods", namespace, pod))
    }
}
