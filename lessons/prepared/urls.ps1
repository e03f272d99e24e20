# The hosts know their HGS.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Set-HgsClientConfiguration -AttestationServerUrl 'http://hgs.bastion.local/Attestation' -KeyProtectionServerUrl 'http://hgs.bastion.local/KeyProtection' | Out-Null
    }
}
