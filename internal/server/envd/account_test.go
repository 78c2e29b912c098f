package envd

import (
	"path"
	"strings"
	"testing"
)

// FuzzHomeOf reads the users of a hostile guest.
func FuzzHomeOf(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\nroot:x:0:0::/other:/bin/sh\n", "root")
	f.Add("a:b\n:x:0:0::/x:/y\nu:x:1:1::relative:/bin/sh\nv:x:1:1::/a/../b:/bin/sh", "v")
	f.Fuzz(func(t *testing.T, text, name string) {
		home := homeOf(strings.NewReader(text), name)
		if home != "" && (!path.IsAbs(home) || path.Clean(home) != home || !strings.Contains(text, name+":")) {
			t.Errorf("%q has the home %q", name, home)
		}
	})
}
