//! What becomes of each cmdlet and parameter of Windows and of Virtual Machine Manager.

use hgs_shell::cmdlets::{Implementation, Run};

use super::{certificates, ci_policy, cim, computer, events, network, vmm};

const CREDENTIAL: &str = "every machine of the lab takes the shell's own administrator";
const SESSION: &str = "there are no CIM sessions: Invoke-Command -ComputerName runs a cmdlet elsewhere";
const FORCE: &str = "nothing is asked before it";
const POLICY: &str = "a policy has rules by hash here, whatever the level";
const KEY: &str = "a certificate has an RSA key of 2048 bits, exportable, for signing, encryption, client and server";
const SELF: &str = "certificates are self-signed here";
const NO_CLEAR: &str = "a TPM that is cleared would be another one, and its host's keys are gone with it";
const DNS: &str = "the lab has one table of names, which every machine reads";
const CIM: &str = "the object has all its properties";
const QUERY: &str = "name the class with -ClassName";
const LISTS: &str = "logs and providers are not listed: Get-WinEvent without them gives every event of the machine";
const FILTER: &str = "filter with -FilterHashtable";
const ONE: &str = "there is one server of Virtual Machine Manager";
const CI: &str = "apply the policy on the host itself: copy it to C:\\Windows\\System32\\CodeIntegrity and restart";
const WEB: &str = "pages are read as they are, by one GET";
const RESTART: &str = "the computer is up again when the cmdlet returns";
const SERVICES: &str = "services stand alone here";

pub(in crate::cmdlets) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "ConvertFrom-CIPolicy",
        implemented: &["XmlFilePath", "BinaryFilePath"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(ci_policy::compile),
    },
    Implementation {
        cmdlet: "New-CIPolicy",
        implemented: &["FilePath", "Level", "Fallback", "ScanPath", "UserPEs", "Deny"],
        without_effect: &[
            ("Audit", "a new policy is in audit mode always"),
            ("ScriptFileNames", POLICY),
            ("AllowFileNameFallbacks", POLICY),
            ("SpecificFileNameLevel", POLICY),
            ("UserWriteablePaths", POLICY),
            ("NoScript", "scripts are not scanned"),
            ("NoShadowCopy", "no file is held open by another"),
            ("MultiplePolicyFormat", POLICY),
            ("OmitPaths", POLICY),
            ("PathToCatroot", POLICY),
            ("AppIdTaggingPolicy", POLICY),
            ("AppIdTaggingKey", POLICY),
            ("AppIdTaggingValue", POLICY),
        ],
        rejected: &[
            ("DriverFiles", "files are scanned below -ScanPath"),
            ("Rules", "rules come from the scan"),
        ],
        run: Run::Each(ci_policy::new),
    },
    Implementation {
        cmdlet: "Set-RuleOption",
        implemented: &["FilePath", "Option", "Delete", "Help"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(ci_policy::set_option),
    },
    Implementation {
        cmdlet: "Merge-CIPolicy",
        implemented: &["OutputFilePath", "PolicyPaths"],
        without_effect: &[("AppIdTaggingPolicy", POLICY)],
        rejected: &[("Rules", "rules come from the policies that are merged")],
        run: Run::Each(ci_policy::merge),
    },
    Implementation {
        cmdlet: "New-SelfSignedCertificate",
        implemented: &["NotAfter", "NotBefore", "Subject", "DnsName", "CertStoreLocation"],
        without_effect: &[
            ("SecurityDescriptor", KEY),
            ("TextExtension", KEY),
            ("Extension", KEY),
            ("HardwareKeyUsage", KEY),
            ("KeyUsageProperty", KEY),
            ("KeyUsage", KEY),
            ("KeyProtection", KEY),
            ("KeyExportPolicy", KEY),
            ("KeyLength", KEY),
            ("KeyAlgorithm", KEY),
            ("SmimeCapabilities", KEY),
            ("KeyLocation", KEY),
            ("SignerReader", KEY),
            ("Reader", KEY),
            ("SignerPin", KEY),
            ("Pin", KEY),
            ("KeyDescription", KEY),
            ("KeyFriendlyName", KEY),
            ("Container", KEY),
            ("Provider", KEY),
            ("CurveExport", KEY),
            ("KeySpec", KEY),
            ("Type", KEY),
            ("FriendlyName", "no view shows it"),
            ("SerialNumber", KEY),
            ("SuppressOid", KEY),
            ("HashAlgorithm", KEY),
            ("AlternateSignatureAlgorithm", KEY),
        ],
        rejected: &[
            ("ExistingKey", "each certificate has a new key"),
            ("TestRoot", SELF),
            ("Signer", SELF),
            ("CloneCert", SELF),
        ],
        run: Run::Each(certificates::new),
    },
    Implementation {
        cmdlet: "Export-PfxCertificate",
        implemented: &["FilePath", "NoClobber", "Password", "Cert"],
        without_effect: &[
            ("NoProperties", "no view shows them"),
            ("Force", FORCE),
            ("CryptoAlgorithmOption", "the file is under AES-256 always"),
            ("ChainOption", "the file has the one certificate"),
        ],
        rejected: &[
            ("PFXData", "name the certificate with -Cert"),
            (
                "ProtectTo",
                "no Active Directory is built: protect the file with -Password",
            ),
        ],
        run: Run::Each(certificates::export_pfx),
    },
    Implementation {
        cmdlet: "Import-PfxCertificate",
        implemented: &["FilePath", "CertStoreLocation", "Password"],
        without_effect: &[("Exportable", "keys of the lab can be exported")],
        rejected: &[],
        run: Run::Each(certificates::import_pfx),
    },
    Implementation {
        cmdlet: "Export-Certificate",
        implemented: &["NoClobber", "FilePath", "Cert"],
        without_effect: &[("Type", "the file has the one certificate, DER"), ("Force", FORCE)],
        rejected: &[],
        run: Run::Each(certificates::export),
    },
    Implementation {
        cmdlet: "Import-Certificate",
        implemented: &["FilePath", "CertStoreLocation"],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(certificates::import),
    },
    Implementation {
        cmdlet: "Install-WindowsFeature",
        implemented: &["Name", "ComputerName"],
        without_effect: &[
            ("Restart", "a feature is there at once"),
            ("IncludeAllSubFeature", "features have no parts here"),
            ("IncludeManagementTools", "cmdlets come with their feature"),
            ("Source", "nothing is downloaded"),
            ("Credential", CREDENTIAL),
            ("LogPath", "the outcome is on the console"),
        ],
        rejected: &[
            ("Vhd", "disks of other machines are sealed"),
            ("ConfigurationFilePath", "name the features with -Name"),
        ],
        run: Run::Each(computer::install),
    },
    Implementation {
        cmdlet: "Get-WindowsFeature",
        implemented: &["Name", "ComputerName"],
        without_effect: &[("Credential", CREDENTIAL), ("LogPath", "the outcome is on the console")],
        rejected: &[("Vhd", "disks of other machines are sealed")],
        run: Run::Each(computer::get_features),
    },
    Implementation {
        cmdlet: "Uninstall-WindowsFeature",
        implemented: &["Name", "ComputerName"],
        without_effect: &[
            ("Restart", "a feature is gone at once"),
            ("IncludeManagementTools", "cmdlets go with their feature"),
            ("Remove", "nothing is kept of a feature"),
            ("Credential", CREDENTIAL),
            ("LogPath", "the outcome is on the console"),
        ],
        rejected: &[("Vhd", "disks of other machines are sealed")],
        run: Run::Each(computer::uninstall),
    },
    Implementation {
        cmdlet: "Initialize-Tpm",
        implemented: &[],
        without_effect: &[
            ("AllowClear", "the TPM is ready"),
            ("AllowPhysicalPresence", "the TPM is ready"),
        ],
        rejected: &[],
        run: Run::Each(computer::tpm),
    },
    Implementation {
        cmdlet: "Get-Tpm",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(computer::tpm),
    },
    Implementation {
        cmdlet: "Clear-Tpm",
        implemented: &[],
        without_effect: &[],
        rejected: &[
            ("OwnerAuthorization", NO_CLEAR),
            ("UsePPI", NO_CLEAR),
            ("File", NO_CLEAR),
        ],
        run: Run::Each(computer::clear_tpm),
    },
    Implementation {
        cmdlet: "Confirm-SecureBootUEFI",
        implemented: &[],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(computer::secure_boot),
    },
    Implementation {
        cmdlet: "Add-DnsServerConditionalForwarderZone",
        implemented: &["Name", "PassThru"],
        without_effect: &[
            ("MasterServers", DNS),
            ("ForwarderTimeout", DNS),
            ("LoadExisting", DNS),
            ("ComputerName", DNS),
            ("UseRecursion", DNS),
            ("DirectoryPartitionName", DNS),
            ("ReplicationScope", DNS),
        ],
        rejected: &[],
        run: Run::Each(network::add_forwarder),
    },
    Implementation {
        cmdlet: "Resolve-DnsName",
        implemented: &["Name"],
        without_effect: &[
            ("Type", DNS),
            ("Server", DNS),
            ("DnsOnly", DNS),
            ("CacheOnly", DNS),
            ("DnssecOk", DNS),
            ("DnssecCd", DNS),
            ("NoHostsFile", DNS),
            ("LlmnrNetbiosOnly", DNS),
            ("LlmnrFallback", DNS),
            ("LlmnrOnly", DNS),
            ("NetbiosFallback", DNS),
            ("NoIdn", DNS),
            ("NoRecursion", DNS),
            ("QuickTimeout", DNS),
            ("TcpOnly", DNS),
        ],
        rejected: &[],
        run: Run::Each(network::resolve),
    },
    Implementation {
        cmdlet: "Test-NetConnection",
        implemented: &["ComputerName", "InformationLevel", "CommonTCPPort", "Port"],
        without_effect: &[],
        rejected: &[
            ("TraceRoute", "there are no routes in this lab"),
            ("Hops", "there are no routes in this lab"),
            ("DiagnoseRouting", "there are no routes in this lab"),
            ("ConstrainSourceAddress", "there are no routes in this lab"),
            ("ConstrainInterface", "there are no routes in this lab"),
        ],
        run: Run::Each(network::test),
    },
    Implementation {
        cmdlet: "Get-ScheduledTask",
        implemented: &["TaskName"],
        without_effect: &[("TaskPath", "there is one task here")],
        rejected: &[],
        run: Run::Each(computer::get_task),
    },
    Implementation {
        cmdlet: "Start-ScheduledTask",
        implemented: &["TaskName", "InputObject"],
        without_effect: &[("TaskPath", "there is one task here")],
        rejected: &[],
        run: Run::Each(computer::start_task),
    },
    Implementation {
        cmdlet: "Get-CimInstance",
        implemented: &["ClassName"],
        without_effect: &[
            ("KeyOnly", CIM),
            ("Namespace", "the class says which"),
            ("OperationTimeoutSec", CIM),
            ("QueryDialect", CIM),
            ("Shallow", CIM),
            ("Filter", CIM),
            ("Property", CIM),
        ],
        rejected: &[
            (
                "ComputerName",
                "Invoke-Command -ComputerName runs it on another computer",
            ),
            ("CimSession", SESSION),
            ("ResourceUri", QUERY),
            ("Query", QUERY),
            ("InputObject", QUERY),
        ],
        run: Run::Each(cim::get),
    },
    Implementation {
        cmdlet: "Invoke-CimMethod",
        implemented: &["ClassName", "Arguments", "MethodName"],
        without_effect: &[
            ("Namespace", "the class says which"),
            ("OperationTimeoutSec", CIM),
            ("QueryDialect", CIM),
        ],
        rejected: &[
            (
                "ComputerName",
                "Invoke-Command -ComputerName runs it on another computer",
            ),
            ("CimSession", SESSION),
            ("ResourceUri", QUERY),
            ("InputObject", QUERY),
            ("CimClass", QUERY),
            ("Query", QUERY),
        ],
        run: Run::Each(cim::invoke),
    },
    Implementation {
        cmdlet: "Get-WinEvent",
        implemented: &[
            "LogName",
            "MaxEvents",
            "ComputerName",
            "Oldest",
            "ProviderName",
            "FilterHashtable",
        ],
        without_effect: &[("Credential", CREDENTIAL), ("Force", FORCE)],
        rejected: &[
            ("FilterXPath", FILTER),
            ("ListLog", LISTS),
            ("ListProvider", LISTS),
            ("Path", "events are in the machines, not in files"),
            ("FilterXml", FILTER),
        ],
        run: Run::Each(events::get),
    },
    Implementation {
        cmdlet: "Get-SCVMHost",
        implemented: &["ComputerName"],
        without_effect: &[("VMMServer", ONE)],
        rejected: &[("ID", "hosts are known by name")],
        run: Run::Each(vmm::get_hosts),
    },
    Implementation {
        cmdlet: "Set-SCVMHost",
        implemented: &[
            "VMHost",
            "AttestationServerUrl",
            "AttestationFallbackServerUrl",
            "KeyProtectionServerUrl",
            "KeyProtectionFallbackServerUrl",
        ],
        without_effect: &[("BypassMaintenanceModeCheck", "there is no maintenance mode")],
        rejected: &[("CodeIntegrityPolicy", CI), ("ApplyLatestCodeIntegrityPolicy", CI)],
        run: Run::Each(vmm::set_host),
    },
    Implementation {
        cmdlet: "Get-SCVMMServer",
        implemented: &[],
        without_effect: &[("ComputerName", ONE)],
        rejected: &[],
        run: Run::Each(vmm::get_server),
    },
    Implementation {
        cmdlet: "Set-SCVMMServer",
        implemented: &["AttestationServerUrl", "KeyProtectionServerUrl"],
        without_effect: &[("VMMServer", ONE)],
        rejected: &[],
        run: Run::Each(vmm::set_server),
    },
];

/// Those of PowerShell itself that act on the fabric.
pub(in crate::cmdlets) const CORE: &[Implementation] = &[
    Implementation {
        cmdlet: "Restart-Computer",
        implemented: &["ComputerName"],
        without_effect: &[
            ("Credential", CREDENTIAL),
            ("DcomAuthentication", RESTART),
            ("Impersonation", RESTART),
            ("WsmanAuthentication", RESTART),
            ("Protocol", RESTART),
            ("Force", FORCE),
            ("Wait", RESTART),
            ("Timeout", RESTART),
            ("For", RESTART),
            ("Delay", RESTART),
            ("ThrottleLimit", "one call runs at a time"),
        ],
        rejected: &[("AsJob", "there are no background jobs")],
        run: Run::Each(computer::restart),
    },
    Implementation {
        cmdlet: "Invoke-WebRequest",
        implemented: &["Uri", "Method", "OutFile", "PassThru"],
        without_effect: &[
            ("UseBasicParsing", "pages are not parsed"),
            ("WebSession", WEB),
            ("SessionVariable", WEB),
            ("Credential", CREDENTIAL),
            ("UseDefaultCredentials", WEB),
            ("CertificateThumbprint", WEB),
            ("Certificate", WEB),
            ("UserAgent", WEB),
            ("DisableKeepAlive", WEB),
            ("TimeoutSec", WEB),
            ("Headers", WEB),
            ("MaximumRedirection", WEB),
            ("Proxy", WEB),
            ("ProxyCredential", WEB),
            ("ProxyUseDefaultCredentials", WEB),
            ("ContentType", WEB),
            ("TransferEncoding", WEB),
        ],
        rejected: &[
            ("Body", "pages are read here, by GET"),
            ("InFile", "pages are read here, by GET"),
        ],
        run: Run::Each(network::web_request),
    },
    Implementation {
        cmdlet: "Get-Service",
        implemented: &["Name"],
        without_effect: &[
            ("DependentServices", SERVICES),
            ("RequiredServices", SERVICES),
            ("Include", SERVICES),
            ("Exclude", SERVICES),
        ],
        rejected: &[
            (
                "ComputerName",
                "Invoke-Command -ComputerName runs it on another computer",
            ),
            ("DisplayName", "name the service with -Name"),
            ("InputObject", "name the service with -Name"),
        ],
        run: Run::Each(computer::get_services),
    },
];
