package access

import "testing"

func TestRights(t *testing.T) {
	for name, c := range map[string]struct {
		rights Rights
		want   map[Right]bool
	}{
		"none":   {0, map[Right]bool{0: false, Open: true, Read: false, Write: false, Admin: false}},
		"reader": {Rights(Read), map[Right]bool{0: false, Open: true, Read: true, Write: false, Admin: false}},
		"all":    {AllRights, map[Right]bool{0: false, Open: true, Read: true, Write: true, Admin: true}},
	} {
		for right, want := range c.want {
			if c.rights.Include(right) != want {
				t.Errorf("%s: include %s is %v", name, right, !want)
			}
		}
	}
}
