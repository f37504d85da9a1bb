//! Recipes of the documentation, followed as a reader does: block by block, with this test's own addresses in the place of the
//! page's examples.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::mesh::Mesh;
use crate::{programs, wait};

/// A registry that shows changes after its own delays, on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(90);
/// Where recipes have pilot's configuration, what it has to know after a restart, and its HTTP interface.
const CONFIG_DIR: &str = "/etc/mesh";
const REGISTRY_DIR: &str = "/var/lib/mesh";
const PILOT: &str = "pilot.shop.example:8080";

/// What is left of a section of a page.
#[derive(Clone, Debug)]
pub struct Recipe {
    page: String,
    rest: String,
}

impl Recipe {
    /// The section under this heading of a page in `docs`.
    pub fn read(page: &str, heading: &str) -> Result<Recipe> {
        let file = programs::workspace().join("docs").join(page);
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let mut lines = text.lines();
        let level = lines
            .by_ref()
            .find_map(|line| level(line).filter(|level| line[*level..].trim() == heading))
            .with_context(|| format!("{page} has no {heading:?}"))?;
        let mut is_code = false;
        let section = lines.take_while(|line| {
            is_code ^= line.starts_with("```");
            is_code || self::level(line).is_none_or(|other| other > level)
        });
        Ok(Recipe {
            page: page.to_owned(),
            rest: section.flat_map(|line| [line, "\n"]).collect(),
        })
    }

    /// Puts this test's own in the place of an example, in all that is left.
    pub fn place(&mut self, example: &str, own: impl Display) -> Result<()> {
        let is_there = self.rest.contains(example);
        ensure!(is_there, "{}: no {example} is left", self.page);
        self.rest = self.rest.replace(example, &own.to_string());
        Ok(())
    }

    /// The next block, which has to be in this language.
    pub fn block(&mut self, language: &str) -> Result<String> {
        let parts = self.rest.split_once("```").and_then(|(_, block)| {
            let (its, block) = block.split_once('\n')?;
            let (block, rest) = block.split_once("```\n")?;
            Some((its == language, block.to_owned(), rest.to_owned()))
        });
        let parts = parts.with_context(|| format!("{}: no {language} is left", self.page))?;
        let (is_right, block, rest) = parts;
        ensure!(is_right, "{}: not {language}:\n{block}", self.page);
        self.rest = rest;
        Ok(block)
    }

    /// Starts pilot as the next block does.
    pub fn start_mesh(&mut self) -> Result<Mesh> {
        let command = self.block("sh")?.replace("\\\n", " ");
        let flags = command.trim().strip_prefix("pilot discovery ");
        let flags = flags.with_context(|| format!("{}: not pilot: {command}", self.page))?;
        let mut words = flags.split_whitespace();
        let mut faces = Vec::new();
        let mut keeps = false;
        while let Some(flag) = words.next() {
            let value = words.next().unwrap_or_default();
            match value.strip_prefix("0.0.0.0:") {
                Some(port) => faces.push((flag, port.parse()?)),
                None if (flag, value) == ("--configDir", CONFIG_DIR) => {}
                None if (flag, value) == ("--registryDir", REGISTRY_DIR) => keeps = true,
                None => bail!("{}: {flag} {value}", self.page),
            }
        }
        let mesh = Mesh::start_as(&faces, keeps)?;
        self.place(CONFIG_DIR, mesh.config().display())?;
        self.place(PILOT, mesh.pilot_http())?;
        Ok(mesh)
    }

    /// Writes the file that the next block is, at once as a whole; its first line names it.
    pub fn write(&mut self) -> Result<()> {
        let block = self.block("yaml")?;
        let name = block
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# /"));
        let name = name.with_context(|| format!("{}: no file: {block}", self.page))?;
        let file = Path::new("/").join(name);
        let new = file.with_extension("new");
        fs::write(&new, block)?;
        fs::rename(new, &file).with_context(|| format!("{}", file.display()))
    }

    /// The value of a setting in the next block.
    pub fn setting(&mut self, name: &str) -> Result<String> {
        let block = self.block("properties")?;
        let mut lines = block.lines().filter_map(|line| line.split_once('='));
        let line = lines.find(|(key, _)| *key == name);
        let (_, value) = line.with_context(|| format!("{}: no {name}: {block}", self.page))?;
        Ok(value.to_owned())
    }

    /// Runs the next block in a shell that knows this workspace's programs.
    pub fn run(&mut self) -> Result<String> {
        run(&self.block("sh")?)
    }

    /// Runs the next block until it says all that the block after that shows.
    pub fn see(&mut self) -> Result<()> {
        self.see_as(|script| {
            let said = run(script)?;
            serde_json::from_str(&said).with_context(|| said.clone())
        })
    }

    /// The same for what a shell of this test cannot run.
    pub fn see_as(&mut self, run: impl Fn(&str) -> Result<Value>) -> Result<()> {
        let script = self.block("sh")?;
        let shown: Value = serde_json::from_str(&self.block("json")?)?;
        wait::until_ok(&format!("{shown}"), LIMIT, || {
            let said = run(script.trim())?;
            ensure!(has(&said, &shown), "{said:#}");
            Ok(())
        })
    }

    /// Makes sure that everything was done.
    pub fn end(&self) -> Result<()> {
        ensure!(!self.rest.contains("```"), "{}: {}", self.page, self.rest);
        Ok(())
    }
}

fn run(script: &str) -> Result<String> {
    let own = programs::own("meshctl")?;
    let mut path = own.parent().context("no folder")?.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    let output = command.args(["-ec", script]).env("PATH", path).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{script}{said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// How many `#` a heading has.
fn level(line: &str) -> Option<usize> {
    let level = line.find(|c| c != '#')?;
    (level > 0 && line[level..].starts_with(' ')).then_some(level)
}

/// Whether all that is expected is there, whatever else is.
fn has(value: &Value, expected: &Value) -> bool {
    match (value, expected) {
        (Value::Object(value), Value::Object(expected)) => {
            expected.iter().all(|(key, expected)| {
                let value = value.get(key);
                value.is_some_and(|value| has(value, expected))
            })
        }
        (Value::Array(values), Value::Array(expected)) => expected
            .iter()
            .all(|expected| values.iter().any(|value| has(value, expected))),
        _ => value == expected,
    }
}
