# The baseline and the code-integrity policy of the first host hold for all.
Invoke-Command -ComputerName host01 {
    New-CIPolicy -Level FilePublisher -Fallback Hash -FilePath 'C:\temp\ci.xml' -UserPEs
    ConvertFrom-CIPolicy -XmlFilePath 'C:\temp\ci.xml' -BinaryFilePath 'C:\temp\ci.p7b' | Out-Null
}
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name {
        Copy-Item '\\host01\C$\temp\ci.p7b' 'C:\Windows\System32\CodeIntegrity\SIPolicy.p7b'
        Restart-Computer -Force
    }
}
Invoke-Command -ComputerName host01 { Get-HgsAttestationBaselinePolicy -Path 'C:\temp\hw1.tcglog' -SkipValidation }
Invoke-Command -ComputerName HGS01 {
    Copy-Item '\\host01\C$\temp\hw1.tcglog' 'C:\temp\hw1.tcglog'
    Copy-Item '\\host01\C$\temp\ci.p7b' 'C:\temp\ci.p7b'
    Add-HgsAttestationTpmPolicy -Name 'HW1' -Path 'C:\temp\hw1.tcglog' | Out-Null
    Add-HgsAttestationCIPolicy -Name 'AllowMicrosoft' -Path 'C:\temp\ci.p7b' | Out-Null
}
