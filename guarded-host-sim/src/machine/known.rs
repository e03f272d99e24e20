//! What an administrator should know of each dial: what it means, and what of the boot log it changes. A test boots
//! real TPMs with every dial turned and holds this table against their logs and PCRs, both ways.

/// One dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Known {
    /// Its name in a file of dials.
    pub name: &'static str,
    /// What it means.
    pub about: &'static str,
    /// Which events of the next boot's log are otherwise for it: PCR, and name of the variable, the tag or else the type.
    pub measured: &'static [(u8, &'static str)],
}

/// Every dial. `vsm` besides takes away what only a hypervisor measures, and the VSM keys; `omit` and `template` change
/// what their values name.
pub const DIALS: &[Known] = &[
    Known {
        name: "firmware",
        about: "version of the firmware",
        measured: &[
            (0, "EV_S_CRTM_VERSION"),
            (0, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
            (1, "EV_EFI_HANDOFF_TABLES"),
        ],
    },
    Known {
        name: "secure_boot",
        about: "UEFI Secure Boot",
        measured: &[(7, "SecureBoot"), (12, "VBS_SECUREBOOT_REQUIRED")],
    },
    Known {
        name: "dbx",
        about: "list of revoked signatures in the firmware, by name",
        measured: &[(7, "dbx")],
    },
    Known {
        name: "boot_authority",
        about: "who signed the boot manager",
        measured: &[
            (4, "EV_EFI_BOOT_SERVICES_APPLICATION"),
            (7, "EV_EFI_VARIABLE_AUTHORITY"),
            (14, "AUTHORITYPUBKEY"),
        ],
    },
    Known {
        name: "uefi_debug",
        about: "kernel debugging",
        measured: &[(12, "OSKERNELDEBUG")],
    },
    Known {
        name: "boot_debugging",
        about: "boot debugging",
        measured: &[(12, "BOOTDEBUGGING")],
    },
    Known {
        name: "hypervisor_debug",
        about: "hypervisor debugging",
        measured: &[(12, "HYPERVISOR_DEBUG")],
    },
    Known {
        name: "test_signing",
        about: "test-signed code is accepted",
        measured: &[(12, "TESTSIGNING")],
    },
    Known {
        name: "vsm",
        about: "virtual secure mode, and with it the VBS store",
        measured: &[(12, "HYPERVISOR_LAUNCH_TYPE"), (12, "VSM_LAUNCH_TYPE")],
    },
    Known {
        name: "hvci",
        about: "the hypervisor enforces code integrity",
        measured: &[(12, "VBS_HVCI_POLICY")],
    },
    Known {
        name: "ci_policy",
        about: "code-integrity policy: a file, or none",
        measured: &[(12, "INFORMATION"), (13, "SI_POLICY")],
    },
    Known {
        name: "iommu",
        about: "VBS requires DMA protection",
        measured: &[
            (12, "HYPERVISOR_IOMMU_POLICY"),
            (12, "HYPERVISOR_BOOT_DMA_PROTECTION"),
            (12, "VBS_IOMMU_REQUIRED"),
        ],
    },
    Known {
        name: "bitlocker",
        about: "the TPM unlocks the system volume",
        measured: &[(12, "BITLOCKER_UNLOCK")],
    },
    Known {
        name: "pagefile_encryption",
        about: "encrypted page file",
        measured: &[(12, "PAGEFILE_ENCRYPTION_ENABLED")],
    },
    Known {
        name: "hibernation_disabled",
        about: "no hibernation",
        measured: &[(12, "HIBERNATION_DISABLED")],
    },
    Known {
        name: "dumps_disabled",
        about: "no memory dumps",
        measured: &[(12, "DUMPS_DISABLED")],
    },
    Known {
        name: "dump_encryption",
        about: "encrypted memory dumps",
        measured: &[(12, "DUMP_ENCRYPTION_ENABLED")],
    },
    Known {
        name: "dump_encryption_key",
        about: "public key to which dumps are encrypted: a file, or none",
        measured: &[(12, "DUMP_ENCRYPTION_KEY_DIGEST")],
    },
    Known {
        name: "full_boot",
        about: "off: the boot manager says that it resumes a system (`machine hibernate` really does)",
        measured: &[(12, "TRANSFER_CONTROL")],
    },
    Known {
        name: "ek_certificate",
        about: "EK certificate that the host shows: issued, expired, unknown_vendor, missing",
        measured: &[],
    },
    Known {
        name: "clock_skew",
        about: "by how much the host's clock is wrong: 9h, -15m, 0s",
        measured: &[],
    },
    Known {
        name: "omit",
        about: "variables and tags that the machine leaves out of its log, with commas, or none; no real machine does so",
        measured: &[],
    },
    Known {
        name: "template",
        about: "boot log of a real machine whose shape the host has: a file, or none",
        measured: &[],
    },
];
