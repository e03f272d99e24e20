//! What an administrator does about an error of either protocol.

/// What helps against the error reply (MS-HGSA) or error code (MS-KPS) of this name.
pub fn remedy(error: &str) -> Option<&'static str> {
    let row = ERRORS.iter().find(|(name, _)| *name == error);
    row.map(|(_, help)| *help)
}

/// Errors of both protocols and what an administrator does about each.
const ERRORS: [(&str, &str); 19] = [
    (
        "OperationModeErrorReply",
        "The service is in another mode than the URL's: see Get-HgsServer, and let the host attest again.",
    ),
    (
        "PayloadErrorReply",
        "The request does not fit its URL: compare the versions of host and service.",
    ),
    (
        "PolicyEvaluationErrorReply",
        "Look at each failed policy; change the host, or register its new baseline or policy.",
    ),
    (
        "RtpmErrorReply",
        "The exchange with the TPM failed: let the host attest again; if it stays, look at the TPM and at what is \
         between host and service.",
    ),
    (
        "TcgLogValidationErrorReply",
        "The boot log does not prove the PCR values: reboot the host; update firmware and network boot program.",
    ),
    (
        "UnauthorizedErrorReply",
        "The host's identity is not registered: capture it on the host and add it with Add-HgsAttestationTpmHost or \
         Add-HgsAttestationHostKey.",
    ),
    (
        "UnavailableErrorReply",
        "The service is busy or its database is away: wait; if it stays, look at its log.",
    ),
    (
        "VirtualSecureModeErrorReply",
        "Virtualization-based security does not run or shows no key: turn it on, and reboot.",
    ),
    (
        "VsmReportValidationErrorReply",
        "The report of the CA trustlet does not verify: only a trustlet on that host can make one.",
    ),
    (
        "ErrorReply",
        "The service could not issue a certificate: see whether its attestation signer has ended, and renew it.",
    ),
    (
        "HealthCertificateException",
        "Key protection does not accept the health certificate: compare clocks, and see that its attestation signer is \
         registered with key protection.",
    ),
    (
        "InvalidProtectorException",
        "The key protector was changed or is damaged: put back the one of a backup, or let its owner make a new one.",
    ),
    (
        "InvalidWrappingException",
        "A wrapping of the key protector is damaged: let its owner make a new protector.",
    ),
    (
        "KeyProtectionAccessDeniedException",
        "No wrapping is for a certificate of this HGS: enable the old certificate, or let the VM's owner grant access \
         to this HGS's guardian.",
    ),
    (
        "InvalidRequestException",
        "The request is not the protocol's: compare the versions of host and service.",
    ),
    (
        "UnsupportedAlgorithmException",
        "The host asks for an algorithm that this service does not have: update the host.",
    ),
    (
        "MetadataException",
        "The HGS has no primary certificate: make one primary with Set-HgsKeyProtectionCertificate -IsPrimary.",
    ),
    (
        "UnavailableException",
        "Key protection is busy or its database is away: wait; if it stays, look at its log.",
    ),
    (
        "InternalException",
        "Key protection could not use its keys: look at its log, and at the token that holds them.",
    ),
];
