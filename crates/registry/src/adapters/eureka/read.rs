//! What a server holds, brought up to date by its deltas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::peer::Peer;
use super::{Config, Failure};
use crate::eureka::info::{Action, Info, Status};
use crate::eureka::{Applications, hash, model};
use crate::model::Instance;
use crate::source::{Link, List, Report, Skipped};

/// Servers give hashes that do not fit what they hold: between two whole answers that only a hash asks for there is time.
const WHOLE_INTERVAL: Duration = Duration::from_secs(30);
/// A delta has the last three minutes: who has not asked for longer must ask for everything.
const DELTA_REACH: Duration = Duration::from_secs(150);

/// An instance of an application.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    status: Status,
    read: Result<Instance, String>,
}

/// Application, and instances by their ids.
type Apps = BTreeMap<String, BTreeMap<String, Entry>>;

/// What a server holds.
pub(super) struct Held {
    apps: Apps,
}

impl Held {
    pub(super) fn new(applications: Applications) -> Held {
        let mut apps = Apps::new();
        for (app, value) in applications.instances {
            let (id, entry, _) = entry(&app, &value);
            apps.entry(app).or_default().insert(id, entry);
        }
        Held { apps }
    }

    fn hash(&self) -> String {
        let instances = self.apps.values().flat_map(BTreeMap::values);
        hash(instances.map(|entry| entry.status))
    }

    /// Applies a delta, and names the applications that it changes.
    fn apply(&mut self, delta: Applications) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        for (app, value) in delta.instances {
            let (id, entry, action) = entry(&app, &value);
            let instances = self.apps.entry(app.clone()).or_default();
            let is_new = if action == Some(Action::Deleted) {
                instances.remove(&id).is_some()
            } else {
                instances.insert(id, entry.clone()) != Some(entry)
            };
            if instances.is_empty() {
                self.apps.remove(&app);
            }
            if is_new {
                changed.insert(app);
            }
        }
        changed
    }

    /// Takes everything anew, and names the applications that changed.
    fn replace(&mut self, applications: Applications) -> BTreeSet<String> {
        let before = std::mem::replace(self, Held::new(applications)).apps;
        let names = before.keys().chain(self.apps.keys());
        names
            .filter(|app| before.get(*app) != self.apps.get(*app))
            .cloned()
            .collect()
    }

    pub(super) async fn report_all(&self, link: &Link) {
        for app in self.apps.keys() {
            link.report(Report::List(self.list(app, false))).await;
        }
    }

    async fn report(&self, link: &Link, changed: &BTreeSet<String>, certain: bool) {
        for app in changed {
            link.report(Report::List(self.list(app, certain))).await;
        }
    }

    fn list(&self, app: &str, certain: bool) -> List {
        let (mut instances, mut skipped) = (Vec::new(), Vec::new());
        for (id, entry) in self.apps.get(app).into_iter().flatten() {
            match &entry.read {
                Ok(instance) => instances.push(instance.clone()),
                Err(reason) => skipped.push(Skipped::new(&format!("{app}/{id}"), reason)),
            }
        }
        List {
            name: app.into(),
            instances,
            skipped,
            certain,
        }
    }
}

fn entry(app: &str, value: &Value) -> (String, Entry, Option<Action>) {
    match Info::parse(value) {
        Ok(mut info) => {
            if info.app.is_empty() {
                app.clone_into(&mut info.app);
            }
            let read = model::instance(&info, info.status).map_err(|e| e.to_string());
            let status = info.status;
            (info.id, Entry { status, read }, info.action)
        }
        Err(error) => {
            let id = value.get("instanceId").and_then(Value::as_str);
            let status = value.get("status").and_then(Value::as_str);
            let entry = Entry {
                status: status.map_or(Status::Unknown, Status::named),
                read: Err(error.to_string()),
            };
            let action = value.get("actionType").and_then(Value::as_str);
            let is_gone = action == Some("DELETED");
            let action = is_gone.then_some(Action::Deleted);
            (id.unwrap_or_default().to_owned(), entry, action)
        }
    }
}

/// Reads until the server fails.
pub(super) async fn run(config: &Config, link: &Link, peer: &Peer, mut held: Held) -> Failure {
    let interval = config.poll_interval();
    let mut asked = Instant::now();
    let mut whole: Option<Instant> = None;
    loop {
        // Hubs that started together spread.
        tokio::time::sleep(interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        let late = asked.elapsed() > DELTA_REACH;
        asked = Instant::now();
        let delta = if late { Ok(None) } else { peer.delta().await };
        match delta {
            Ok(Some(delta)) => {
                let expected = delta.hash.clone();
                let changed = held.apply(delta);
                let fits = held.hash() == expected;
                held.report(link, &changed, fits).await;
                if fits || whole.is_some_and(|at| at.elapsed() < WHOLE_INTERVAL) {
                    continue;
                }
            }
            Ok(None) => {}
            Err(failure) => return failure,
        }
        match peer.applications().await {
            Ok(applications) => {
                whole = Some(Instant::now());
                let changed = held.replace(applications);
                held.report(link, &changed, false).await;
            }
            Err(failure) => return failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eureka::Format;

    fn applications(instances: &[(&str, &str, &str, &str)], hash: &str) -> Applications {
        let instances = instances.iter().map(|(app, id, port, action)| {
            let value = serde_json::json!({
                "instanceId": id, "app": app, "ipAddr": "10.0.0.1", "status": "UP",
                "port": {"$": port, "@enabled": "true"}, "actionType": action,
            });
            ((*app).to_owned(), value)
        });
        Applications {
            hash: hash.to_owned(),
            instances: instances.collect(),
        }
    }

    #[test]
    fn a_delta_brings_up_to_date_and_its_hash_tells() {
        let mut held = Held::new(applications(
            &[
                ("A", "1", "80", ""),
                ("A", "2", "x", ""),
                ("B", "3", "80", ""),
            ],
            "UP_3_",
        ));
        assert_eq!(held.hash(), "UP_3_");
        let list = held.list("A", false);
        assert_eq!((list.instances.len(), list.skipped.len()), (1, 1));
        assert!(list.skipped[0].reason.contains("port"), "{list:?}");

        let delta = applications(
            &[
                ("A", "1", "80", "MODIFIED"),
                ("B", "3", "80", "DELETED"),
                ("C", "4", "80", "ADDED"),
            ],
            "UP_3_",
        );
        let changed = held.apply(delta);
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), ["B", "C"]);
        assert_eq!(held.hash(), "UP_3_");
        assert!(held.list("B", true).instances.is_empty());

        let changed = held.replace(applications(&[("C", "4", "80", "")], "UP_1_"));
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), ["A"]);
    }

    #[test]
    fn one_malformed_instance_hides_no_other() -> Result<(), crate::naming::Malformed> {
        let body = br#"{"applications":{"apps__hashcode":"","application":[
            {"name":"A","instance":[{"instanceId":"1","port":"no"},7,{"instanceId":"2","ipAddr":"10.0.0.1","port":{"$":1}}]},
            {"name":"B"},null,{"instance":{}}]}}"#;
        let mut content = Format::Json.read(body, "applications")?;
        let held = Held::new(Applications::of(&mut content));
        let list = held.list("A", false);
        assert_eq!(
            (list.instances.len(), list.skipped.len()),
            (1, 2),
            "{list:?}"
        );
        Ok(())
    }
}
