//! The shape of an instance.

use crate::error::Fault;
use crate::mib::Mib;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The vCPUs, memory and disks of every instance of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Virtual processors, 1 to 255.
    #[schemars(range(min = 1, max = 255))]
    pub vcpus: u32,
    /// Guest memory in MiB, 128 to 1048576.
    #[schemars(range(min = 128, max = 1048576))]
    pub mem_mib: Mib,
    /// Size of the data disk at `/data` in MiB; 0 for none.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16777216))]
    pub data_disk_mib: Mib,
    /// Size of the scratch disk below the writable root in MiB.
    #[serde(default = "default_scratch")]
    #[schemars(range(min = 64, max = 16777216))]
    pub scratch_disk_mib: Mib,
}

/// The default size of the scratch disk: with it, the specification's 16 running, 4 warm
/// and 8 sleeping instances fit into its 200 GiB.
pub const DEFAULT_SCRATCH: Mib = Mib(1024);

fn default_scratch() -> Mib {
    DEFAULT_SCRATCH
}

impl Default for Resources {
    /// Returns 2 vCPUs, 2048 MiB of memory and no data disk.
    fn default() -> Self {
        Resources {
            vcpus: 2,
            mem_mib: Mib(2048),
            data_disk_mib: Mib(0),
            scratch_disk_mib: DEFAULT_SCRATCH,
        }
    }
}

impl Resources {
    /// Checks every field's range; the path of the fault is the field's name.
    pub fn validate(&self) -> Result<(), Fault> {
        let range = |field: &str, value: u64, min: u64, max: u64, unit: &str| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(Fault::new(Code::InvalidValue, format!("{field} is {value}{unit}"))
                .at(field)
                .hint(format!("allowed are {min} to {max}{unit}")))
        };
        range("vcpus", self.vcpus.into(), 1, 255, "")?;
        range("mem_mib", self.mem_mib.0, 128, 1 << 20, " MiB")?;
        if self.data_disk_mib != Mib(0) {
            range("data_disk_mib", self.data_disk_mib.0, 16, 1 << 24, " MiB")?;
        }
        range("scratch_disk_mib", self.scratch_disk_mib.0, 64, 1 << 24, " MiB")
    }

    /// Returns the most that one instance can use on disk: memory file and both disks.
    pub fn disk_mib(&self) -> Mib {
        self.mem_mib + self.data_disk_mib + self.scratch_disk_mib
    }
}
