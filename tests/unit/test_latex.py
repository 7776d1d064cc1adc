import pytest

from virtiopy.statements.extract import feature_bits, normative_statements, statements
from virtiopy.statements.latex import Requirements, flatten, plain, sections


def numbers(text: str) -> list[tuple[str, str]]:
    return [(section.number, section.title) for section in sections(text)]


def texts(body: str) -> list[str]:
    return [text for _, text in statements(body)]


def keywords(body: str) -> list[str]:
    return [keyword for keyword, _ in statements(body)]


def test_headings_of_all_levels_are_numbered() -> None:
    text = r"""
    \chapter{One}\section{A}\subsection{B}\subsubsection{C}\paragraph{D}\subparagraph{E}
    \subparagraph{F}\section{G}\subsection{H}\chapter{Two}\section{I}
    """
    assert numbers(text) == [
        ("1", "One"),
        ("1.1", "A"),
        ("1.1.1", "B"),
        ("1.1.1.1", "C"),
        ("1.1.1.1.1", "D"),
        ("1.1.1.1.1.1", "E"),
        ("1.1.1.1.1.2", "F"),
        ("1.2", "G"),
        ("1.2.1", "H"),
        ("2", "Two"),
        ("2.1", "I"),
    ]


def test_a_heading_that_skips_a_level_counts_it_as_zero() -> None:
    assert numbers(r"\chapter{A}\section{B}\paragraph{C}")[-1] == ("1.1.0.0.1", "C")


def test_an_appendix_is_lettered() -> None:
    assert numbers(r"\chapter{A}\appendix\chapter{B}\section{C}\chapter{D}") == [
        ("1", "A"),
        ("A", "B"),
        ("A.1", "C"),
        ("B", "D"),
    ]


def test_a_heading_with_a_star_has_no_number_and_takes_none() -> None:
    assert numbers(r"\chapter{A}\section*{B}\section{C}") == [("1", "A"), ("", "B"), ("1.1", "C")]


def test_the_headings_of_requirements_and_clauses_count_like_others() -> None:
    text = r"""
    \chapter{A}\section{B}
    \drivernormative{\subsection}{\field{idx} of B}{A / B}
    \devicenormative{\subsection}{B}{A / B}
    \conformance{\section}{C}
    """
    assert numbers(text)[2:] == [
        ("1.1.1", "Driver Requirements: idx of B"),
        ("1.1.2", "Device Requirements: B"),
        ("1.2", "C"),
    ]
    assert [section.requirements for section in sections(text)][2:] == [
        Requirements.DRIVER,
        Requirements.DEVICE,
        Requirements.NONE,
    ]


def test_a_section_ends_where_the_next_heading_begins() -> None:
    first, second = sections(r"\chapter{A} one \paragraph{B} two")
    assert (first.body.strip(), second.body.strip()) == ("one", "two")
    assert second.ancestors == ("A", "", "", "")


def test_included_files_take_the_place_of_their_inclusion() -> None:
    files = {"main.tex": "a\n\\input{sub/one.tex}\n\\include{two}\nd", "sub/one.tex": "b"}
    files["two.tex"] = "c"
    assert flatten(files.__getitem__, "main.tex").split() == ["a", "b", "c", "d"]


def test_comments_and_listings_are_left_out() -> None:
    text = "10\\% of % nothing\n% \\section{No}\nit\n\\begin{lstlisting}\n\\section{No}\n"
    files = {"main.tex": text + "\\end{lstlisting}\nend"}
    assert flatten(files.__getitem__, "main.tex").split() == [r"10\%", "of", "it", "end"]


def test_a_line_of_comment_ends_no_paragraph() -> None:
    files = {"main.tex": "one\n% comment\ntwo"}
    assert flatten(files.__getitem__, "main.tex") == "one\ntwo"


def test_plain_text_keeps_words_and_drops_what_is_not_read() -> None:
    text = (
        r"The \field{len} of\footnote{A {long} story.} it~(see \ref{x}), ``big'' \& $2^{4}$ \em{so}"
    )
    assert plain(text) == 'The len of it (see ), "big" & 2^4 so'


def test_braces_that_stay_open_are_refused() -> None:
    with pytest.raises(ValueError, match="are not closed"):
        sections(r"\chapter{A")


def test_a_sentence_with_a_keyword_is_a_statement() -> None:
    assert texts("The device MUST hum. It is loud. It\nMUST NOT sing.\n\nThat MAY end") == [
        "The device MUST hum.",
        "It MUST NOT sing.",
        "That MAY end",
    ]


def test_a_sentence_with_two_keywords_is_two_statements() -> None:
    body = "The device MUST hum and SHOULD smile."
    assert keywords(body) == ["MUST", "SHOULD"]
    assert texts(body) == [body, body]


@pytest.mark.parametrize(
    ("spelling", "keyword"),
    [
        ("SHALL", "MUST"),
        ("MUST not", "MUST NOT"),
        ("MOST NOT", "MUST NOT"),
        ("SHOULD\nNOT", "SHOULD NOT"),
        ("is NOT RECOMMENDED to", "SHOULD NOT"),
        ("is RECOMMENDED to", "SHOULD"),
        ("is OPTIONAL to", "MAY"),
        ("is REQUIRED to", "MUST"),
    ],
)
def test_keywords_have_several_spellings(spelling: str, keyword: str) -> None:
    assert keywords(f"The device {spelling} hum.") == [keyword]


def test_words_that_only_hold_a_keyword_are_none() -> None:
    assert texts("If VIRTIO_F_MUST_TELL is set, the MAYOR must hum.") == []


def test_an_abbreviation_ends_no_sentence() -> None:
    body = "The device MUST hum, i.e. A or B, and stop."
    assert texts(body) == [body]


def test_a_sentence_may_begin_with_the_name_of_a_field() -> None:
    assert texts(r"It MUST hum. \field{max_hum} is the limit.") == ["It MUST hum."]


def test_items_with_keywords_are_statements_after_what_leads_to_them() -> None:
    body = r"""
    If it is night:
    \begin{itemize}
    \item The device MUST hum.
    \item After the bell:
      \begin{itemize}
      \item If it rains, the device SHOULD stop.
      \item It is up to it.
      \end{itemize}
    \end{itemize}
    The device MUST listen.
    """
    assert texts(body) == [
        "If it is night: The device MUST hum.",
        "If it is night: After the bell: If it rains, the device SHOULD stop.",
        "The device MUST listen.",
    ]


def test_the_keyword_of_the_lead_is_not_counted_again() -> None:
    body = r"The device MAY hum, if so: \begin{enumerate}\item it MUST stop;\end{enumerate}"
    assert keywords(body) == ["MAY", "MUST"]


def test_items_without_keywords_belong_to_their_sentence() -> None:
    body = r"""
    If one of these is true:

    \begin{itemize}
    \item it is night
    \item it rains
    \end{itemize}
    the device MUST NOT hum.

    It MUST stop.
    """
    assert texts(body) == [
        "If one of these is true: it is night ; it rains the device MUST NOT hum.",
        "It MUST stop.",
    ]


def test_a_list_after_a_full_stop_has_no_lead() -> None:
    body = r"It is night. \begin{itemize} \item The device MUST hum. \end{itemize}"
    assert texts(body) == ["The device MUST hum."]


def test_notes_and_tables_make_no_statement() -> None:
    body = r"""
    The device MUST hum.
    \begin{note} It MAY smile. \end{note}
    \begin{tabular}{|l|} It SHOULD & smile \end{tabular}
    """
    assert texts(body) == ["The device MUST hum."]


DOCUMENT = r"""
\chapter{Introduction}
\chapter{Basic Facilities}
\section{Status}
The device MUST NOT count here.
\drivernormative{\subsection}{Status}{x}
The driver MUST NOT count.
\devicenormative{\subsection}{Status}{x}
The device MUST hum.
\subsubsection{Legacy Interface: Humming}
\devicenormative{\paragraph}{Humming}{x}
Devices MUST NOT count.
\section{Features}
\begin{description}
\item[VIRTIO_F_HUMMING(28)] hums
\item[ VIRTIO_SONG_F_LOUD (3) ] is loud
\item[VIRTIO_SONG_S_OK (1)] is no feature
\end{description}
\chapter{General Operation}
\chapter{Transports}
\section{PCI}
\devicenormative{\subsection}{PCI}{x}
The device MUST NOT count.
"""


def test_statements_are_taken_from_the_device_requirements_that_are_covered() -> None:
    assert [
        (one.id, one.title) for one in normative_statements(sections(DOCUMENT), Requirements.DEVICE)
    ] == [("2.1.2:1", "Device Requirements: Status")]


def test_features_are_taken_with_their_bit_numbers() -> None:
    for side in (Requirements.DEVICE, Requirements.DRIVER):
        found = feature_bits(sections(DOCUMENT), side)
        assert found == {"VIRTIO_F_HUMMING": 28, "VIRTIO_SONG_F_LOUD": 3}
