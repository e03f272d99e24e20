# A guarded fabric with TPM-trusted attestation, in the order of the public deployment guides: the first HGS node, the artefacts of
# a reference host, their registration, the hosts' client configuration, diagnostics, a shielded VM and its live migration.
$ErrorActionPreference = 'Stop'
$hosts = 'host01', 'host02'

# The Host Guardian Service.
Invoke-Command -ComputerName HGS01 {
    $password = ConvertTo-SecureString -AsPlainText 'Passw0rd!Passw0rd!' -Force
    Install-WindowsFeature -Name HostGuardianServiceRole -IncludeManagementTools -Restart | Out-Null
    Install-HgsServer -HgsDomainName 'bastion.local' -SafeModeAdministratorPassword $password -Restart

    $signing = New-SelfSignedCertificate -Subject 'CN=HGS Signing Certificate' -CertStoreLocation Cert:\LocalMachine\My
    Export-PfxCertificate -FilePath C:\temp\signCert.pfx -Password $password -Cert $signing | Out-Null
    $encryption = New-SelfSignedCertificate -Subject 'CN=HGS Encryption Certificate' -CertStoreLocation Cert:\LocalMachine\My
    Export-PfxCertificate -FilePath C:\temp\encCert.pfx -Password $password -Cert $encryption | Out-Null

    Import-Certificate -FilePath C:\TrustedTpm\RootCA.cer -CertStoreLocation Cert:\LocalMachine\TrustedTPM_RootCA | Out-Null
    Import-Certificate -FilePath C:\TrustedTpm\IntermediateCA1.cer -CertStoreLocation Cert:\LocalMachine\TrustedTPM_IntermediateCA | Out-Null

    Initialize-HgsServer -HgsServiceName 'hgs' -SigningCertificatePath 'C:\temp\signCert.pfx' `
        -SigningCertificatePassword $password -EncryptionCertificatePath 'C:\temp\encCert.pfx' `
        -EncryptionCertificatePassword $password -TrustTpm
    Get-HgsServer
}

# The hosts: features, and on the first, which is the reference for all of its kind, a code-integrity policy in audit mode.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name { Install-WindowsFeature -Name Hyper-V, HostGuardian -IncludeManagementTools -Restart | Out-Null }
}
Invoke-Command -ComputerName host01 {
    New-CIPolicy -Level FilePublisher -Fallback Hash -FilePath 'C:\temp\HW1CodeIntegrity.xml' -UserPEs
    ConvertFrom-CIPolicy -XmlFilePath 'C:\temp\HW1CodeIntegrity.xml' -BinaryFilePath 'C:\temp\HW1CodeIntegrity.p7b' | Out-Null
}
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Copy-Item '\\host01\C$\temp\HW1CodeIntegrity.p7b' 'C:\Windows\System32\CodeIntegrity\SIPolicy.p7b'
        Restart-Computer -Force
    }
}

# What identifies each host, and what a healthy one of this kind measures.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Initialize-Tpm | Out-Null
        (Get-PlatformIdentifier -Name $env:COMPUTERNAME).InnerXml | Out-File "C:\temp\$env:COMPUTERNAME.xml" -Encoding UTF8
    }
}
Invoke-Command -ComputerName host01 { Get-HgsAttestationBaselinePolicy -Path 'C:\temp\HW1.tcglog' }

Invoke-Command -ComputerName HGS01 {
    foreach ($name in 'HOST01', 'HOST02') {
        Copy-Item "\\$name\C`$\temp\$name.xml" "C:\temp\$name.xml"
        Add-HgsAttestationTpmHost -Name $name -Path "C:\temp\$name.xml"
    }
    Copy-Item '\\host01\C$\temp\HW1.tcglog' 'C:\temp\HW1.tcglog'
    Copy-Item '\\host01\C$\temp\HW1CodeIntegrity.p7b' 'C:\temp\HW1CodeIntegrity.p7b'
    Add-HgsAttestationTpmPolicy -Name 'HW1' -Path 'C:\temp\HW1.tcglog'
    Add-HgsAttestationCIPolicy -Name 'HW1' -Path 'C:\temp\HW1CodeIntegrity.p7b'
}

foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Set-HgsClientConfiguration -AttestationServerUrl 'http://hgs.bastion.local/Attestation' `
            -KeyProtectionServerUrl 'http://hgs.bastion.local/KeyProtection'
        Get-HgsTrace -RunDiagnostics
    }
}
Invoke-Command -ComputerName HGS01 { Get-HgsTrace -RunDiagnostics }

# The owner's key protector: for himself, and for the fabric.
$protector = Invoke-Command -ComputerName WS01 {
    Invoke-WebRequest 'http://hgs.bastion.local/KeyProtection/service/metadata/2014-07/metadata.xml' -OutFile 'C:\temp\metadata.xml' -UseBasicParsing
    $fabric = Import-HgsGuardian -Path 'C:\temp\metadata.xml' -Name 'HGS' -AllowUntrustedRoot
    $owner = New-HgsGuardian -Name 'Owner' -GenerateCertificates
    (New-HgsKeyProtector -Owner $owner -Guardian $fabric -AllowUntrustedRoot).RawData
}

Invoke-Command -ComputerName host01 {
    New-VM -Name 'Shielded01' -Generation 2 -MemoryStartupBytes 1GB -NoVHD | Out-Null
    Set-VMKeyProtector -VMName 'Shielded01' -KeyProtector $using:protector
    Set-VMSecurityPolicy -VMName 'Shielded01' -Shielded $true
    Enable-VMTPM -VMName 'Shielded01'
    Start-VM -Name 'Shielded01'
    Get-VMSecurity -VMName 'Shielded01'
    Move-VM -Name 'Shielded01' -DestinationHost 'host02'
}
Invoke-Command -ComputerName host02 { Get-VM -Name 'Shielded01' }
