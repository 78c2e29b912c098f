package access

import "testing"

func TestScope(t *testing.T) {
	for name, c := range map[string]struct {
		scope Scope
		sees  []string
		not   []string
	}{
		"zero":     {Scope{}, nil, []string{"", "acc_a"}},
		"no owner": {Owner(""), nil, []string{"", "acc_a"}},
		"owner":    {Owner("acc_a"), []string{"acc_a"}, []string{"", "acc_b"}},
		"everyone": {Everyone, []string{"", "acc_a", "acc_b"}, nil},
	} {
		for _, id := range c.sees {
			if !c.scope.Sees(id) {
				t.Errorf("%s: does not see %q", name, id)
			}
		}
		for _, id := range c.not {
			if c.scope.Sees(id) {
				t.Errorf("%s: sees %q", name, id)
			}
		}
	}
}

// What all users run is changed by admins only.
func TestSharingOfPublicObjects(t *testing.T) {
	member, admin := Owner("usr_a"), Principal{OwnerID: "usr_a", Rights: AllRights}.Manager()
	for _, c := range []struct {
		scope Scope
		to    Visibility
		may   bool
	}{
		{member, Public, false}, {admin, Public, true}, {member, Private, true}, {member, Shared, true},
	} {
		if err := (Sharing{Visibility: c.to}).Check(c.scope); (err == nil) != c.may {
			t.Errorf("%s: %v, want %t", c.to, err, c.may)
		}
	}
}
