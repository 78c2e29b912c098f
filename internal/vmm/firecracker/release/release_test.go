package release

import "testing"

func TestVersionsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"1.12.0": "1.12.0", "1.12.1\n\nmore": "1.12.1", "2.0.0-dev": "2.0.0", "0.25.2": "0.25.2",
		"": "", "1.12": "", "one": "", "v1.12.0": "",
	} {
		v, ok := Find(text)
		if ok != (want != "") || ok && v.String() != want {
			t.Errorf("%q is %s, %v", text, v, ok)
		}
	}
}

func TestVersionsAreInOrder(t *testing.T) {
	inOrder := []Version{{0, 25, 2}, {1, 9, 9}, {1, 12, 0}, {1, 12, 1}, {1, 16, 0}, {2, 0, 0}}
	for i, v := range inOrder {
		for j, w := range inOrder {
			if v.Before(w) != (i < j) {
				t.Errorf("that %s is before %s is %v", v, w, v.Before(w))
			}
		}
	}
}
