package disk

import (
	"slices"
	"testing"
)

func TestLayout(t *testing.T) {
	for name, c := range map[string]struct {
		shared bool
		want   []Kind
	}{
		"the image is shared": {true, []Kind{Image, Own, Seed}},
		"the image is copied": {false, []Kind{Own, Seed}},
	} {
		t.Run(name, func(t *testing.T) {
			var kinds []Kind
			serials := map[string]bool{}
			for _, d := range Layout(c.shared, 128) {
				kinds = append(kinds, d.Kind)
				if d.Serial == "" || len(d.Serial) > 20 || serials[d.Serial] {
					t.Errorf("the serial %q of the %s disk", d.Serial, d.Kind)
				}
				serials[d.Serial] = true
				if writable := !d.ReadOnly; writable != (d.Kind == Own) || writable && d.SizeMiB != 128 {
					t.Errorf("the %s disk is %+v", d.Kind, d)
				}
			}
			if !slices.Equal(kinds, c.want) {
				t.Errorf("got %v, want %v", kinds, c.want)
			}
		})
	}
}
