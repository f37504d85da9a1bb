//! What can happen to registries, pilot and the network between them.

use anyhow::Result;

use crate::side::Kind;
use crate::world::World;

impl World {
    /// A registry's server crashes. While it is away an instance is registered in another registry, after it is back that one
    /// goes.
    pub(crate) fn crash_server(&mut self, kind: Kind, other: Kind, port: u16) -> Result<()> {
        let name = kind.source();
        // What a server keeps in memory alone is gone for its own clients: that is for nobody to hide.
        self.forgive(&[kind], !kind.is_durable())?;
        self.side(kind)?.kill_server()?;
        self.wait_stale(kind, true)?;
        self.register(other, port, 100, "green")?;
        let rest = self.sides.iter().map(|side| side.kind);
        let rest: Vec<Kind> = rest.filter(|k| *k != kind).collect();
        self.converge_on(&rest, &format!("registered while {name} is away"))?;
        self.call_all()?;
        self.side(kind)?.restart_server()?;
        self.converge(&format!("{name} is back"))?;
        self.forgive(&[kind], false)?;
        self.deregister(other, port)?;
        self.converge(&format!("deregistered after {name} came back"))
    }

    /// Pilot crashes; what changes meanwhile is taken in when it is back. Some registries have its copies for as long as it is
    /// connected.
    pub(crate) fn crash_pilot(
        &mut self,
        forgiven: &[Kind],
        change: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<()> {
        self.look()?;
        self.forgive(forgiven, true)?;
        self.mesh.kill_pilot()?;
        self.call_all()?;
        change(self)?;
        self.mesh.restart_pilot()?;
        self.converge("pilot is back")?;
        self.forgive(forgiven, false)?;
        self.call_all()
    }

    /// What a registry loses by itself is nobody's fault.
    fn forgive(&mut self, kinds: &[Kind], is_forgiven: bool) -> Result<()> {
        for kind in kinds {
            self.side(*kind)?.history.is_forgiven = is_forgiven;
        }
        Ok(())
    }

    /// Registries and their applications are out of pilot's reach while something changes. Some have its copies for as long as
    /// it is connected.
    pub(crate) fn part(
        &mut self,
        cut: &[Kind],
        forgiven: &[Kind],
        change: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<()> {
        self.look()?;
        self.forgive(forgiven, true)?;
        for kind in cut {
            self.side(*kind)?.set_cut(true)?;
        }
        for kind in cut {
            self.wait_stale(*kind, true)?;
        }
        change(self)?;
        for kind in cut {
            self.side(*kind)?.set_cut(false)?;
        }
        self.converge(&format!("{cut:?} are in reach again"))?;
        self.forgive(forgiven, false)?;
        self.call_all()
    }
}
