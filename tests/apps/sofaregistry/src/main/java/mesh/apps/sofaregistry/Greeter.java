package mesh.apps.sofaregistry;

/** What the SOFARPC providers of this module serve. */
public interface Greeter {
    String greet(String name);
}
