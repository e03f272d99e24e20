# An HGS of one node in host-key mode.
Invoke-Command -ComputerName HGS01 {
    $password = ConvertTo-SecureString -AsPlainText 'Passw0rd!Passw0rd!' -Force
    Install-WindowsFeature -Name HostGuardianServiceRole -IncludeManagementTools -Restart | Out-Null
    Install-HgsServer -HgsDomainName 'bastion.local' -SafeModeAdministratorPassword $password -Restart
    foreach ($role in 'Signing', 'Encryption') {
        $made = New-SelfSignedCertificate -Subject "CN=HGS $role Certificate" -CertStoreLocation Cert:\LocalMachine\My
        Export-PfxCertificate -FilePath "C:\temp\$role.pfx" -Password $password -Cert $made | Out-Null
    }
    Initialize-HgsServer -HgsServiceName 'hgs' -SigningCertificatePath 'C:\temp\Signing.pfx' -SigningCertificatePassword $password `
        -EncryptionCertificatePath 'C:\temp\Encryption.pfx' -EncryptionCertificatePassword $password -TrustHostKey
}
