"""XMP files as different programs write them, by hand; `{description}` is where a description goes."""

ADOBE = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00        ">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="4"
   photoshop:Headline="a &gt; b"
   crs:Exposure2012="+0.35">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Käse</rdf:li>
    </rdf:Bag>
   </dc:subject>{description}
   <crs:ToneCurve><rdf:Seq><rdf:li>0, 0</rdf:li><rdf:li>255, 255</rdf:li></rdf:Seq></crs:ToneCurve>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmpMM:DerivedFrom="a.jpg"
   darktable:xmp_version="5"
   darktable:auto_presets_applied="1">
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:num="0" darktable:operation="colorin" darktable:params="gz48eJzjYhgFowABWAbaAaNgwAEAEDgABg=="/>
    </rdf:Seq>
   </darktable:history>{description}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DIGIKAM = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b"
    xmlns:digiKam="http://www.digikam.org/ns/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   digiKam:ColorLabel="0">
   <digiKam:TagsList><rdf:Seq><rdf:li>Orte/Köln</rdf:li></rdf:Seq></digiKam:TagsList>{description}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<!-- padding -->                                                                          
<?xpacket end="w"?>"""  # noqa: W291
EXIFTOOL = """<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>

 <rdf:Description rdf:about=''
  xmlns:dc='http://purl.org/dc/elements/1.1/'>{description}
  <dc:creator>
   <rdf:Seq>
    <rdf:li>Jane &amp; Joe</rdf:li>
   </rdf:Seq>
  </dc:creator>
 </rdf:Description>

 <rdf:Description rdf:about=''
  xmlns:photoshop='http://ns.adobe.com/photoshop/1.0/'>
  <photoshop:City>K&#xf6;ln</photoshop:City>
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""
# Other prefixes for the same URIs, no line breaks, and `dc` and `rdf` are something else.
ODD = (
    '<q:RDF xmlns:q="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="urn:other" xmlns:rdf="urn:no">'
    '<!-- </q:RDF> --><q:Description xmlns:d="http://purl.org/dc/elements/1.1/" dc:description="not it" '
    "q:about='x&quot;y'><![CDATA[]]>{description}</q:Description><rdf:RDF/></q:RDF >"
)
STYLES = {"adobe": ADOBE, "darktable": DARKTABLE, "digikam": DIGIKAM, "exiftool": EXIFTOOL, "odd": ODD}


def described(style: str, text: str = "") -> str:
    """A file of a style, with a description of somebody in English and German, or none."""
    rdf, dc = ("q", "d") if style == "odd" else ("rdf", "dc")
    element = (
        f'<{dc}:description><{rdf}:Alt><{rdf}:li xml:lang="x-default">{text}</{rdf}:li>'
        f'<{rdf}:li xml:lang="de">Ein Bild</{rdf}:li></{rdf}:Alt></{dc}:description>'
    )
    return STYLES[style].replace("{description}", element if text else "")
