-- Times are seconds since 1970. Nothing secret stands in a column unsealed.
CREATE TABLE tpm_host (
    name TEXT PRIMARY KEY,
    ek_sha256 BYTEA NOT NULL UNIQUE,   -- SHA-256 of the endorsement key's SubjectPublicKeyInfo
    unproven BIGINT NOT NULL,        -- 1: registered without a certificate of the TPM's vendor
    vendor TEXT,                      -- subject of the trusted root, where there is a certificate
    added_at BIGINT NOT NULL
);
CREATE TABLE registered (
    kind TEXT NOT NULL,               -- baseline, ci-policy, tpm-trust, disabled-policy
    name TEXT NOT NULL,
    body TEXT NOT NULL,               -- JSON
    PRIMARY KEY (kind, name)
);
CREATE TABLE sealed_key (
    name TEXT PRIMARY KEY,
    certificate BYTEA,
    sealed BYTEA NOT NULL
);
CREATE TABLE audit (
    writer BYTEA NOT NULL,
    sequence BIGINT NOT NULL,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    once BYTEA UNIQUE,
    body TEXT NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (writer, sequence)
);
