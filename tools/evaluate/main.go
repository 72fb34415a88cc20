// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command evaluate sends generated traffic through the XDP program, which is attached to a
// device, with generated arrival times. It shows which packets are flagged although nothing is
// planted, and which planted delays and channels are found. It exits with an error if a bound
// is not met.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
)

// defaultSeed is the seed of the figures in the documents.
const defaultSeed = 1

func main() {
	seed := flag.Uint64("seed", defaultSeed, "seed of the random numbers; the documents contain the figures of the default")
	only := flag.String("only", "", "regular expression of the experiments to run, matched with names such as 'detection: constant, log2, +5σ'")
	write := flag.String("write", "", "write tables, figures and plots into the documents of the repository in this directory")
	flag.Parse()

	if err := evaluate(os.Stdout, *seed, *only, *write); err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		os.Exit(1)
	}
}

func evaluate(w io.Writer, seed uint64, only, repository string) error {
	if repository != "" && (seed != defaultSeed || only != "") {
		return errors.New("the documents need the figures of all experiments with the default seed: leave out --write")
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	r, err := l.runAll(w, seed, 1, func(q question) bool { return wanted.MatchString(q.String()) })
	if err := errors.Join(err, l.close()); err != nil {
		return err
	}
	if repository != "" {
		if err := r.write(repository); err != nil {
			return err
		}
	}
	return r.failed()
}

// runAll runs the wanted experiments with a part of their packets, 1 for all, and prints each
// result.
func (l *lab) runAll(w io.Writer, seed uint64, part float64, isWanted func(question) bool) (*report, error) {
	r := &report{Seed: seed}
	for _, e := range experiments() {
		if !isWanted(e.question()) {
			continue
		}
		found, err := e.run(l, seed, part)
		if err != nil {
			return nil, err
		}
		r.Results = append(r.Results, found)
		verdict := ""
		switch {
		case found.Bound != "" && found.IsMet:
			verdict = found.Bound + ": met"
		case found.Bound != "":
			verdict = found.Bound + ": NOT MET"
		}
		fmt.Fprintf(w, "%-58v  %-30v  %-26s  %s\n", found.question, found.figure, found.counted(), verdict)
	}
	return r, nil
}
