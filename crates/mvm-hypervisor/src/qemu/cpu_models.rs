//! The CPU models that QEMU offers on this host, in its own words.

use super::Accelerator;
use crate::{Error, Result};
use mvm_model::CpuModel;
use mvm_model::accelerator::Processor;
use mvm_model::cpu::CpuIdentity;
use mvm_model::cpu_model::{OfferedModel, choices, choose};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

/// How long QEMU may take to answer; under 200 ms on an idle host.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes; QEMU 7.2's has 36 kB.
const LONGEST_ANSWER: u64 = 4 << 20;
/// What QEMU is asked, in QMP.
const QUESTION: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n\
    {\"execute\":\"query-cpu-definitions\"}\n{\"execute\":\"quit\"}\n";

/// The CPU models of one QEMU program. What it offers is asked once for each accelerator.
#[derive(Debug)]
pub(super) struct CpuModels {
    program: PathBuf,
    offered: Mutex<BTreeMap<Accelerator, Arc<[OfferedModel]>>>,
}

impl CpuModels {
    pub(super) fn new(program: PathBuf) -> Self {
        CpuModels { program, offered: Mutex::default() }
    }

    /// Returns the processor of a machine with this named CPU model on the host with the CPU `here`.
    /// Errors: `cpu_model_unavailable`; `qemu_unusable` where QEMU does not say what it offers.
    pub(super) async fn processor(
        &self,
        accelerator: Accelerator,
        name: &CpuModel,
        here: &CpuIdentity,
    ) -> Result<Processor> {
        let offered = self.offered(accelerator).await?;
        let chosen = choose(name, &offered).map_err(|why| Error::CpuModelUnavailable {
            model: name.clone(),
            on: match accelerator {
                Accelerator::Kvm => format!("kvm on {here}"),
                Accelerator::Tcg => "tcg, QEMU's own translation".to_owned(),
            },
            why,
            choices: choices(&offered),
        })?;
        Ok(Processor { accelerator, model: chosen.into() })
    }

    async fn offered(&self, accelerator: Accelerator) -> Result<Arc<[OfferedModel]>> {
        let mut known = self.offered.lock().await;
        if let Some(offered) = known.get(&accelerator) {
            return Ok(Arc::clone(offered));
        }
        let asked = tokio::time::timeout(PATIENCE, ask(&self.program, accelerator)).await;
        let late = || format!("within {} s", PATIENCE.as_secs());
        let offered = asked.unwrap_or_else(|_| Err(late())).map_err(|why| Error::QemuUnusable {
            program: self.program.clone(),
            reason: format!("it does not say which CPU models it has under {accelerator}: {why}"),
        })?;
        let offered: Arc<[OfferedModel]> = offered.into();
        known.insert(accelerator, Arc::clone(&offered));
        Ok(offered)
    }
}

/// Asks a process without a machine. Its names without a version stand for the versions that all of
/// QEMU's PCs have; a microVM would take the newest, which is another one after an upgrade.
async fn ask(program: &Path, accelerator: Accelerator) -> Result<Vec<OfferedModel>, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
    command.args(["-machine", "none", "-accel", accelerator.as_str(), "-qmp", "stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut input = input.ok_or("it has no input")?;
    let (mut answer, mut words) = (Vec::new(), Vec::new());
    // A process that ends at once says why on its standard error.
    let asks = async { drop(input.write_all(QUESTION).await) };
    let mut output = output.ok_or("it has no output")?.take(LONGEST_ANSWER);
    let mut errors = errors.ok_or("it has no output")?.take(4096);
    let hears = output.read_to_end(&mut answer);
    let ((), heard, _) = tokio::join!(asks, hears, errors.read_to_end(&mut words));
    heard.map_err(|e| e.to_string())?;
    drop(child.kill().await);
    definitions_in(&answer).ok_or_else(|| String::from_utf8_lossy(&words).trim().to_owned())
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    definitions: Vec<Definition>,
}

/// A CPU model as `query-cpu-definitions` describes it (QEMU QMP Reference Manual).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Definition {
    name: String,
    alias_of: Option<String>,
    #[serde(default)]
    unavailable_features: Vec<String>,
    /// Whether the model has the same features wherever it can be had.
    migration_safe: Option<bool>,
}

/// Reads QEMU's answers, one a line; `None` if none of them lists CPU models. A model whose name
/// cannot be given to QEMU is left out.
pub(super) fn definitions_in(answers: &[u8]) -> Option<Vec<OfferedModel>> {
    let mut lines = answers.split(|byte| *byte == b'\n');
    let Answer { definitions } = lines.find_map(|line| serde_json::from_slice(line).ok())?;
    let offered = |one: Definition| {
        Some(OfferedModel {
            name: one.name.parse().ok()?,
            alias_of: one.alias_of.map(|name| name.parse()).transpose().ok()?,
            lacks: one.unavailable_features.iter().map(|name| plain(name)).collect(),
            is_fixed: one.migration_safe == Some(true),
        })
    };
    Some(definitions.into_iter().filter_map(offered).collect())
}

/// Returns the name of a feature as it may stand in a message.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).take(48).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::binary;
    use mvm_model::Code;
    use mvm_model::cpu_model::CpuModelFault;
    use proptest::prelude::*;

    const TWO: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"return": [{"name": "Nehalem", "alias-of": "Nehalem-v1", "typename": "t", "static": false,
 "migration-safe": true, "unavailable-features": []}, {"name": "max", "migration-safe": false,
 "unavailable-features": ["a,b"]}, {"name": "a,b", "migration-safe": true}]}
{"return": {}}"#;

    async fn asked(models: &CpuModels, name: &str) -> Result<String> {
        let here = CpuIdentity::of(&Default::default());
        let name = name.parse().expect("a name");
        models.processor(Accelerator::Tcg, &name, &here).await.map(|found| found.model)
    }

    #[test]
    fn an_answer_is_read() {
        let read = definitions_in(TWO.replace(",\n", ",").as_bytes()).expect("models");
        let names: Vec<&str> = read.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["Nehalem", "max"]);
        assert_eq!(read[0].alias_of, "Nehalem-v1".parse().ok());
        assert!(read[0].is_fixed && !read[1].is_fixed && read[0].lacks.is_empty());
        assert_eq!(read[1].lacks, ["a,b"]);
        assert_eq!(definitions_in(b"{\"return\": {}}\n"), None);
    }

    #[tokio::test]
    async fn qemu_says_what_it_offers() {
        let models = CpuModels::new(binary::find_binary().expect("QEMU"));
        assert_eq!(asked(&models, "Nehalem").await.expect("it"), "Nehalem-v1");
        for (name, why) in [("max", CpuModelFault::Varies), ("Nehalem9", CpuModelFault::Unknown)] {
            let error = asked(&models, name).await.expect_err(name);
            assert_eq!(error.code(), Code::CpuModelUnavailable);
            let Error::CpuModelUnavailable { why: said, choices, .. } = &error else {
                panic!("{error}")
            };
            assert!(*said == why && !choices.is_empty(), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        // QEMU itself does not translate these.
        let error = asked(&models, "Skylake-Server").await.expect_err("it lacks some");
        assert!(error.to_string().contains("features cannot be had"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_is_quoted() {
        let error = asked(&CpuModels::new("/bin/false".into()), "EPYC").await.expect_err("no QEMU");
        assert_eq!(error.code(), Code::QemuUnusable);
        let error = asked(&CpuModels::new("/none".into()), "EPYC").await.expect_err("no QEMU");
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes: Vec<u8>, text in ".{0,80}") {
            let _ = definitions_in(&bytes);
            let _ = definitions_in(format!("{{\"return\": [{{\"name\": {text:?}}}]}}").as_bytes());
        }
    }
}
