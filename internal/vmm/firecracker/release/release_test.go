package release

import "testing"

func TestVersionsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"1.12.0": "1.12.0", "1.12.1\n\nmore": "1.12.1", "2.0.0-dev": "2.0.0", "0.25.2": "0.25.2",
		"": "", "1.12": "", "one": "", "v1.12.0": "",
	} {
		t.Run(text, func(t *testing.T) {
			v, ok := Find(text)
			if ok != (want != "") || ok && v.String() != want {
				t.Errorf("%q is parsed as %s, %v; want %q", text, v, ok, want)
			}
		})
	}
}

func TestTheRecommendedReleaseHasNoKnownBug(t *testing.T) {
	if v := Recommended; v.LosesVsock() || v.CorruptsLargeDiffs() || !v.ReportsFreePages() || v.Before(Oldest) {
		t.Errorf("%s has a known bug", v)
	}
	for _, v := range []Version{{1, 16, 0}, {1, 16, 1}} {
		if !v.LosesVsock() {
			t.Errorf("%s is said to keep its vsock", v)
		}
	}
}

func TestVersionsAreInOrder(t *testing.T) {
	inOrder := []Version{{0, 25, 2}, {1, 9, 9}, {1, 12, 0}, {1, 12, 1}, {1, 16, 0}, {2, 0, 0}}
	for i, v := range inOrder {
		for j, w := range inOrder {
			if v.Before(w) != (i < j) {
				t.Errorf("%s is before %s: %v, want %v", v, w, v.Before(w), i < j)
			}
		}
	}
}
