package access

import (
	"slices"
	"testing"
)

func TestRights(t *testing.T) {
	every := append(EveryRight(), Right{}, Open, AnyKey)
	for name, c := range map[string]struct {
		rights Rights
		want   []Right
	}{
		"none":   {0, []Right{Open}},
		"reader": {RightsOf(Read(VMs)), []Right{Open, AnyKey, Read(VMs)}},
		"writer": {RightsOf(Write(VMs), Write(Users)), []Right{Open, AnyKey, Write(VMs), Write(Users)}},
		"admin":  {RightsOf(Admin), slices.DeleteFunc(slices.Clone(every), func(r Right) bool { return r == Right{} })},
	} {
		for _, right := range every {
			if c.rights.Include(right) != slices.Contains(c.want, right) {
				t.Errorf("%s: include %s is %v", name, right, c.rights.Include(right))
			}
		}
		if again := RightsOf(c.rights.List()...); again != c.rights {
			t.Errorf("%s: %b of its list, want %b", name, again, c.rights)
		}
	}
}

func TestParseRight(t *testing.T) {
	for _, r := range EveryRight() {
		if parsed, ok := ParseRight(r.String()); !ok || parsed != r {
			t.Errorf("%s: %v, %v", r, parsed, ok)
		}
	}
	for _, bad := range []string{"", "open", "any", "vms", "vms:", "vms:READ", "vm:read", "admin:write", ":read", "vms:read:write", " vms:read"} {
		if r, ok := ParseRight(bad); ok {
			t.Errorf("%q is %s", bad, r)
		}
	}
}
