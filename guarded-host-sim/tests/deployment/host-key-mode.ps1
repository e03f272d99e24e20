# A guarded fabric with host-key attestation, in the order of the public deployment guides: the first HGS node, the hosts' keys,
# their registration, the hosts' client configuration, diagnostics, a shielded VM and its live migration.
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

    Initialize-HgsServer -HgsServiceName 'hgs' -SigningCertificatePath 'C:\temp\signCert.pfx' `
        -SigningCertificatePassword $password -EncryptionCertificatePath 'C:\temp\encCert.pfx' `
        -EncryptionCertificatePassword $password -TrustHostKey
    Get-HgsServer
}

# Each host's key, of which the service keeps the public half.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Install-WindowsFeature -Name Hyper-V, HostGuardian -IncludeManagementTools -Restart | Out-Null
        Set-HgsClientHostKey
        Get-HgsClientHostKey -Path "C:\temp\$env:COMPUTERNAME-HostKey.cer"
    }
}
Invoke-Command -ComputerName HGS01 {
    foreach ($name in 'HOST01', 'HOST02') {
        Copy-Item "\\$name\C`$\temp\$name-HostKey.cer" "C:\temp\$name-HostKey.cer"
        Add-HgsAttestationHostKey -Name $name -Path "C:\temp\$name-HostKey.cer"
    }
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
