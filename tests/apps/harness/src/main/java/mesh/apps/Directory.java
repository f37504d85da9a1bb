package mesh.apps;

import java.util.Collection;
import java.util.HashMap;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * A registry as its stock client sees it. Commands, each answered by {@code done} or {@code error WHY}:
 *
 * <ul>
 *   <li>{@code register NAME HOST PORT WEIGHT COLOR}: registers an instance of a service, or changes it;
 *   <li>{@code deregister NAME HOST PORT}: takes it out in an orderly way;
 *   <li>{@code watch NAME}: from now on every state of the service that the client comes to know is said as {@code seen
 *       NAME ENTRY...}, each entry as {@code HOST:PORT=WEIGHT,COLOR@ORIGIN}.
 * </ul>
 */
public abstract class Directory {
    private static final String WEIGHT = "weight";
    private static final String COLOR = "color";
    private static final String ORIGIN = "mesh.origin";

    private final Map<String, String> said = new HashMap<>();
    private Console console;

    protected abstract void register(String name, String host, int port, Map<String, String> metadata)
            throws Exception;

    protected abstract void deregister(String name, String host, int port) throws Exception;

    /** Calls {@link #seen} with every state from now on. */
    protected abstract void watch(String name) throws Exception;

    /** Commands of a registry's own; the answer. */
    protected String run(String[] words) throws Exception {
        throw new IllegalArgumentException("unknown command: " + words[0]);
    }

    /** An instance as it is said. */
    protected static String entry(String host, int port, Map<String, String> metadata) {
        return host + ":" + port + "=" + metadata.getOrDefault(WEIGHT, "100") + ","
                + metadata.getOrDefault(COLOR, "-") + "@" + metadata.getOrDefault(ORIGIN, "-");
    }

    /** Says a state, if it is another one than the last. */
    protected final void seen(String name, Collection<String> entries) {
        String state = entries.stream().sorted().map(entry -> " " + entry).collect(Collectors.joining());
        synchronized (said) {
            if (!state.equals(said.put(name, state))) {
                console.print("seen " + name + state);
            }
        }
    }

    /** READY, then commands from stdin until it ends. */
    public final void serve(Console console) {
        this.console = console;
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            String[] words = line.split(" ");
            try {
                console.print(answer(words));
            } catch (Exception failure) {
                failure.printStackTrace();
                console.print("error " + failure);
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private String answer(String[] words) throws Exception {
        switch (words[0]) {
            case "register" -> register(
                    words[1], words[2], Integer.parseInt(words[3]), Map.of(WEIGHT, words[4], COLOR, words[5]));
            case "deregister" -> deregister(words[1], words[2], Integer.parseInt(words[3]));
            case "watch" -> watch(words[1]);
            default -> {
                return run(words);
            }
        }
        return "done";
    }
}
