//! Kills the API server when it is told to, and starts it again.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::Result;

use super::world::{Stage, World};

/// Serves orders to kill the API server for so long; until nobody gives any.
pub(super) fn serve(world: &World, orders: &Receiver<Duration>) -> Result<()> {
    while let Ok(time) = orders.recv() {
        world.say(format!("the API server is killed, for {time:.1?} and its start"));
        world.turn(false);
        world.cluster.stop();
        world.pause(time, Stage::Over);
        world.cluster.restart()?;
        world.turn(true);
        world.say("the API server is back".to_owned());
    }
    Ok(())
}
