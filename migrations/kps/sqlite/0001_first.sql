-- Certificates of this key protection service; private keys are sealed by the key-encryption key.
CREATE TABLE guardian_certificate (
    thumbprint  TEXT NOT NULL PRIMARY KEY,          -- SHA-256 of the certificate, hex
    role        TEXT NOT NULL CHECK (role IN ('signing', 'encryption')),
    is_primary  BOOLEAN NOT NULL,
    certificate BLOB NOT NULL,                      -- DER
    sealed_key  BLOB NOT NULL,                      -- PKCS#8, sealed
    added_at    BIGINT NOT NULL                     -- seconds since 1970
);
CREATE UNIQUE INDEX guardian_certificate_one_primary ON guardian_certificate (role) WHERE is_primary;

-- Attestation signers whose health certificates are accepted.
CREATE TABLE attestation_signer (
    thumbprint         TEXT NOT NULL PRIMARY KEY,   -- SHA-256 of the certificate, hex
    certificate        BLOB NOT NULL,               -- DER
    deny_issued_before BIGINT,                      -- seconds since 1970; NULL: none denied
    added_at           BIGINT NOT NULL
);

CREATE TABLE audit (
    writer   BLOB NOT NULL,
    sequence BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    kind     TEXT NOT NULL,
    once     BLOB UNIQUE,
    body     TEXT NOT NULL,
    mac      BLOB NOT NULL,
    PRIMARY KEY (writer, sequence)
);
