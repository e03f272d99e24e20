# The hosts' TPMs are registered.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name { (Get-PlatformIdentifier -Name $env:COMPUTERNAME).InnerXml | Out-File 'C:\temp\ek.xml' -Encoding UTF8 }
    Invoke-Command -ComputerName HGS01 {
        $name = $using:name
        Copy-Item "\\$name\C`$\temp\ek.xml" "C:\temp\$name.xml"
        Add-HgsAttestationTpmHost -Name $name -Path "C:\temp\$name.xml" | Out-Null
    }
}
