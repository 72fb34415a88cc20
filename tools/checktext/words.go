// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// rule names a wording that readers stumble over and what to write instead.
type rule struct {
	pattern *regexp.Regexp
	allowed *regexp.Regexp // what is right though the pattern matches; nil if nothing is
	remedy  string
}

// rules are the wordings to avoid. A space in a pattern also matches a line break inside a comment.
var rules = []rule{
	wording(`anew`, ``, `write "again", or what starts from zero`),
	wording(`behind`, `behind (?:(?:a|an|the|your|its) )?(?:reverse |authenticating )?`+
		`(?:proxy|proxies|nginx|apache|nat|firewall|gateway|load balancer)`,
		`write "after" or "later than"; "behind" is for proxies and the like`),
	wording(`besides?`, ``, `write "next to", "in addition to" or "other than"`),
	wording(`(?:somebody|someone|whoever)(?:'s|’s)?`, ``, `name the role: a user, an attacker, the caller, the process`),
	wording(`but for`, ``, `write "except"`),
	wording(`(?:else it|or else)`, ``, `write "otherwise"`),
	wording(`for longest`, ``, `write "for the longest time"`),
	wording(`(?:\w+ )?(?:is|are|was|were) no \w+`, `(?:there \w+ no|(?:\w+ )?\w+ no (?:longer|more|less|fewer|larger|smaller|higher|lower|later|earlier|`+
		`better|worse|faster|slower|shorter|wider|narrower|older|newer))`,
		`negate the verb: "is not a …"`),
}

func wording(pattern, allowed, remedy string) rule {
	compile := func(pattern string) *regexp.Regexp {
		return regexp.MustCompile(`(?i)\b` + strings.ReplaceAll(pattern, " ", `\s+`) + `\b`)
	}
	r := rule{pattern: compile(pattern), remedy: remedy}
	if allowed != "" {
		r.allowed = compile(allowed)
	}
	return r
}

// isAllowed reports whether the match that begins at start is right.
func (r rule) isAllowed(text string, start int) bool {
	if r.allowed == nil {
		return false
	}
	at := r.allowed.FindStringIndex(text[start:])
	return at != nil && at[0] == 0
}

// hasOwnWords reports whether the authors chose the wording of a file. They did not choose that of
// licences. The rules quote the words that they forbid, so this program is left out.
func hasOwnWords(path string) bool {
	return !strings.Contains(filepath.ToSlash(path), "tools/checktext/") &&
		!strings.HasPrefix(filepath.Base(path), "LICENSE")
}

// lineStart is what begins a line of a comment, a quotation or a list.
var lineStart = regexp.MustCompile(`(?m)^[ \t]*(?://|/\*|\*|#|>)?[ \t]*`)

// checkWords finds the wordings to avoid, in the order of their lines.
func checkWords(text string) []finding {
	text = lineStart.ReplaceAllString(text, "")
	var found []finding
	for _, r := range rules {
		for _, at := range r.pattern.FindAllStringIndex(text, -1) {
			if r.isAllowed(text, at[0]) {
				continue
			}
			words := strings.Join(strings.Fields(text[at[0]:at[1]]), " ")
			found = append(found, finding{1 + strings.Count(text[:at[0]], "\n"), fmt.Sprintf("%q: %s", words, r.remedy)})
		}
	}
	slices.SortStableFunc(found, func(a, b finding) int { return cmp.Compare(a.line, b.line) })
	return found
}
