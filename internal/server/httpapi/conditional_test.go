package httpapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestParseEntityTags(t *testing.T) {
	for value, want := range map[string][]string{
		"":                        nil,
		" , ,":                    nil,
		`"a"`:                     {`"a"`},
		`"a", W/"b" ,"c"`:         {`"a"`, `W/"b"`, `"c"`},
		`,"a",, "b",`:             {`"a"`, `"b"`},
		`"comma, in it", "b"`:     {`"comma, in it"`, `"b"`},
		`""`:                      {`""`},
		"\"b\xffytes\"":           {"\"b\xffytes\""},
		`"a" "b"`:                 nil,
		`a`:                       nil,
		`w/"a"`:                   nil,
		`W/ "a"`:                  nil,
		`"a`:                      nil,
		`"a", *`:                  nil,
		`*, "a"`:                  nil,
		"\"a\tb\"":                nil,
		`"a";q=1`:                 nil,
		`W/"` + "\x7f" + `", "a"`: nil,
	} {
		list, err := parseEntityTags("If-Match", value)
		empty := strings.Trim(value, " ,") == ""
		spaced := strings.Contains(value, "comma") // a space is not allowed within a tag
		switch {
		case spaced:
			if err == nil {
				t.Errorf("%q is accepted", value)
			}
		case len(want) == 0 && !empty:
			if !errs.HasCode(err, "invalid_etag") || !list.wrong {
				t.Errorf("%q: %+v, %v", value, list, err)
			}
		case err != nil || !slices.Equal(list.tags, want) || list.given == empty || list.any:
			t.Errorf("%q: %+v, %v", value, list, err)
		}
	}
	if list, err := parseEntityTags("If-Match", " * "); err != nil || !list.any || !list.given {
		t.Errorf("a star: %+v, %v", list, err)
	}
}

func TestCompareEntityTags(t *testing.T) {
	for _, c := range []struct {
		list, tag    string
		strong, weak bool
	}{
		{`"a"`, `"a"`, true, true},
		{`"b", "a"`, `"a"`, true, true},
		{`W/"a"`, `"a"`, false, true},
		{`"a"`, `W/"a"`, false, true},
		{`"a-gzip"`, `"a"`, true, true},
		{`W/"a-gzip"`, `"a"`, false, true},
		{`"b"`, `"a"`, false, false},
		{`*`, `"a"`, true, true},
		{`*`, ``, true, true},
		{`""`, ``, false, false},
	} {
		list, err := parseEntityTags("If-Match", c.list)
		if err != nil || list.strong(c.tag) != c.strong || list.weak(c.tag) != c.weak {
			t.Errorf("%s and %s: strong %v, weak %v, %v", c.list, c.tag, list.strong(c.tag), list.weak(c.tag), err)
		}
	}
}

// FuzzEntityTags asserts that a list is read as it is written again, and that nothing
// but whole tags matches.
func FuzzEntityTags(f *testing.F) {
	for _, seed := range []string{`"a"`, `W/"a", "b"`, `*`, `, ,"a"`, `"a`, "\"\xff\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		list, err := parseEntityTags("If-Match", value)
		if err != nil {
			if list.given || list.any || list.tags != nil {
				t.Errorf("%q is refused, and read as %+v", value, list)
			}
			return
		}
		again, err := parseEntityTags("If-Match", strings.Join(list.tags, ", "))
		if err != nil || !slices.Equal(again.tags, list.tags) {
			t.Errorf("%q: %q, then %q, %v", value, list.tags, again.tags, err)
		}
		for _, tag := range list.tags {
			if !strings.Contains(value, tag) || !list.weak(tag) {
				t.Errorf("%q has no %q", value, tag)
			}
		}
	})
}
