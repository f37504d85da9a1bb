package mesh.apps.dubbo2;

/** What a provider offers. */
public interface Echo {
    /** The provider's label. */
    String who();
}
