//! What is done in all registries, one after the other.

use anyhow::Result;

use crate::side::Kind;
use crate::world::World;

/// The first instance of each registry, and the second.
pub(crate) const FIRST: u16 = 20_001;
pub(crate) const SECOND: u16 = 20_011;

impl World {
    /// Each registry with a port of its own.
    pub(crate) fn each(&self, first: u16) -> Vec<(Kind, u16)> {
        self.sides
            .iter()
            .map(|side| side.kind)
            .zip(first..)
            .collect()
    }

    /// Registers an instance in each registry, and lists one.
    pub(crate) fn populate(&mut self) -> Result<()> {
        for (kind, port) in self.each(FIRST) {
            self.register(kind, port, 100, "red")?;
        }
        self.list(100, "red")?;
        self.converge("registered")
    }

    /// Calls what there is, changes it, and has others come in its place.
    pub(crate) fn change_all(&mut self) -> Result<()> {
        self.call_all()?;
        self.call_from_eureka()?;

        for (kind, port) in self.each(FIRST) {
            self.register(kind, port, 30, "blue")?;
        }
        self.list(30, "blue")?;
        self.converge("changed")?;

        for (kind, port) in self.each(SECOND) {
            self.register(kind, port, 100, "red")?;
        }
        self.converge("registered a second time")?;
        for (kind, port) in self.each(FIRST) {
            self.deregister(kind, port)?;
        }
        self.converge("deregistered")?;
        self.call_all()
    }

    /// Kills every application that registers.
    pub(crate) fn kill_all(&mut self) -> Result<()> {
        for (kind, _) in self.each(FIRST) {
            self.kill_registrant(kind)?;
        }
        self.converge("killed")
    }

    /// Starts those applications again, with instances at these ports.
    pub(crate) fn come_back(&mut self, first: u16) -> Result<()> {
        for (kind, port) in self.each(first) {
            self.side(kind)?.restart_registrant()?;
            self.register(kind, port, 100, "green")?;
        }
        self.converge("registered by others")?;
        self.call_all()
    }
}
