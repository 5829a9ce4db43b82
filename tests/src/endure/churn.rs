//! Innocent pods that come and go, one after the other, with addresses that others had just before.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::pods::Running;
use super::world::{Stage, World};

/// Makes and ends pods until it is calm.
pub(super) fn go(world: &World, number: usize, here: bool, mut rng: Rng) -> Result<()> {
    for n in 0.. {
        if world.stage() >= Stage::Calm {
            break;
        }
        // Some come again under their name, as those of a StatefulSet do.
        let name = if rng.u8(..3) == 0 {
            format!("shop/cart-{number}")
        } else {
            format!("shop/web-{number}-{n}")
        };
        let pod = Running::start(world, name, here, &mut rng)?;
        world.pause(Duration::from_millis(rng.u64(200..4_000)), Stage::Calm);
        pod.end(world, &mut rng)?;
    }
    Ok(())
}
