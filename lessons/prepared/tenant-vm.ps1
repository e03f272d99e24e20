# A tenant's shielded VM runs on the first host.
$protector = Invoke-Command -ComputerName WS01 {
    Invoke-WebRequest 'http://hgs.bastion.local/KeyProtection/service/metadata/2014-07/metadata.xml' -OutFile 'C:\temp\metadata.xml' -UseBasicParsing
    $fabric = Import-HgsGuardian -Path 'C:\temp\metadata.xml' -Name 'HGS' -AllowUntrustedRoot
    $owner = New-HgsGuardian -Name 'Owner' -GenerateCertificates
    (New-HgsKeyProtector -Owner $owner -Guardian $fabric -AllowUntrustedRoot).RawData
}
Invoke-Command -ComputerName host01 {
    New-VM -Name 'Tenant01' -Generation 2 -NoVHD | Out-Null
    Set-VMKeyProtector -VMName 'Tenant01' -KeyProtector $using:protector
    Set-VMSecurityPolicy -VMName 'Tenant01' -Shielded $true
    Enable-VMTPM -VMName 'Tenant01'
    Start-VM -Name 'Tenant01'
}
